"""The policies that ship with vla_gym. They import only its public names, as any plug-in would."""
