"""Importing this registers the ids of `tests/own_envs.py`: `"tests.own_ids:VLA/Own-Tray-v0"`."""

from tests.own_envs import register_all

register_all()
