"""CALVIN without calvin_env: its four play tables in MuJoCo."""
