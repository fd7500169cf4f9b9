"""`Finding`: the result of one check of a deployment, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level"]

Level = Literal["ok", "warning", "error", "skipped"]
"""`error`: messages do not arrive, or will not. `warning`: it can fail later. `skipped`: it could not be checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        check: Names the check, for programs.
        level: How it ended.
        text: What was found, in words.
        cure: What to do; empty where nothing is to be done.
    """

    check: str
    level: Level
    text: str
    cure: str = ""
