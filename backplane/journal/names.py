"""Names that can be personal, of channels and clients, in a log: as they are, or as a hash.

The choice is one for the process, since its log is one, and the adapters write to it too.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from backplane.journal.fields import Value

__all__ = ["hide_names", "logged", "names_are_hidden", "show_names", "without_names"]

_NAMES: Final = ("channel", "client_key", "user", "target")
"""The fields that hold a name."""

# A name in words is quoted, as `repr` does; the apostrophe of `client's` begins no quotation.
_QUOTED: Final = re.compile(r"""(?<!\w)(["'])((?:\\.|(?!\1).)*)\1(?!\w)""", re.DOTALL)

_key: bytes | None = None


def hide_names(key: bytes = b"") -> None:
    """Log a hash in place of each name from now on, in this process.

    Args:
        key: What the hash is made with: without it, someone that guesses a name can recognise its hash. Defaults
            to none.
    """
    global _key
    _key = blake2b(key).digest()


def show_names() -> None:
    """Log names as they are, as at the start of the process."""
    global _key
    _key = None


def names_are_hidden() -> bool:
    """Whether a hash is logged in place of a name."""
    return _key is not None


def logged(name: str) -> str:
    """Return a name as it is logged: itself, or `#` and twelve hexadecimal digits, the same for the same name."""
    if _key is None:
        return name
    return "#" + blake2b(name.encode(errors="surrogatepass"), digest_size=6, key=_key).hexdigest()


def without_names(fields: Mapping[str, Value]) -> dict[str, Value]:
    """Return the fields of a line as they are logged where names are hidden.

    In the other texts, whatever is in quotation marks is taken for a name, and so is each name of the line itself.
    """
    names = [value for name in _NAMES if isinstance(value := fields.get(name), str) and value]
    return {
        name: value
        if not isinstance(value, str)
        else logged(value)
        if name in _NAMES
        else _without(value, sorted(names, key=len, reverse=True))
        for name, value in fields.items()
    }


def _without(text: str, names: Iterable[str]) -> str:
    text = _QUOTED.sub(lambda found: found[1] + logged(found[2]) + found[1], text)
    for name in names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", logged(name), text)
    return text
