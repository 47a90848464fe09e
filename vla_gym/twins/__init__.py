"""MuJoCo twins: our own stand-ins for simulators that pip cannot install."""
