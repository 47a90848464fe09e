"""`python -m vla_gym.cli`, e.g. for `accelerate launch -m`."""

from vla_gym.cli import app

if __name__ == "__main__":
    app()
