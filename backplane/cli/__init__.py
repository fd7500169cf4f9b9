"""The command `backplane`, one module for each of its commands."""

from importlib.util import find_spec

for _name in ("rich", "typer"):
    if find_spec(_name) is None:
        raise SystemExit(f'backplane: the command line needs {_name}; run: pip install "fastapi-backplane[cli]"')

from backplane.cli.app import app, main  # noqa: E402  # after the check, as it imports both

__all__ = ["app", "main"]
