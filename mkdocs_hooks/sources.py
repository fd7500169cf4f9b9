"""The modules of the installed package, as files."""

from __future__ import annotations

from pathlib import Path

__all__ = ["source_files"]


def source_files() -> dict[str, Path]:
    """Return every module's file, by its path below the package: `fanout/hub.py`."""
    import backplane

    root = Path(backplane.__file__).parent
    # `adapters` is a link to a folder of its own in a source tree, which `rglob` does not follow.
    files = {*root.rglob("*.py"), *(root / "adapters").rglob("*.py")}
    return {path.relative_to(root).as_posix(): path for path in sorted(files)}
