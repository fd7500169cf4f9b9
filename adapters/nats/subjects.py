"""The subject of a channel.

A channel becomes one token of a subject: letters, digits, `_` and `-` stay, every other byte of its UTF-8 is written
`=XX`. So no channel name is a wildcard or leads into another account's subjects.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from backplane.channels import RESERVED_PREFIX

__all__ = ["decode_channel", "encode_channel", "reserved_subjects"]

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")
_SPECIAL: Final = re.compile(rb"[^A-Za-z0-9_-]")
_ENCODED: Final = re.compile(rb"=([0-9A-F]{2})")


@lru_cache(maxsize=10_000)
def encode_channel(prefix: str, channel: str) -> bytes:
    """Return the subject of a channel: one token after the prefix, of at most three bytes per byte of the name.

    A reserved channel has a token for each of its parts, so that one wildcard permits them all, random ends included.
    Two channels never share a subject.
    """
    if _PLAIN.fullmatch(channel):
        return (prefix + channel).encode()
    if channel.startswith(RESERVED_PREFIX):
        return prefix.encode() + b".".join(_token(part) or b"=" for part in channel.split("/"))
    return prefix.encode() + _token(channel)


@lru_cache(maxsize=10_000)
def decode_channel(prefix: str, subject: bytes) -> str | None:
    """Return the channel of a subject of one token after the prefix; `None` where no channel has this subject."""
    token = _ENCODED.sub(lambda found: bytes.fromhex(found[1].decode()), subject[len(prefix) :])
    try:
        channel = token.decode()
    except UnicodeDecodeError:
        return None
    return channel if channel and encode_channel(prefix, channel) == subject else None


def reserved_subjects(prefix: str) -> str:
    """Return the wildcard that permits the subjects of every reserved channel."""
    return encode_channel(prefix, f"{RESERVED_PREFIX}x").decode().removesuffix("x") + ">"


def _token(name: str) -> bytes:
    return _SPECIAL.sub(lambda found: b"=%02X" % found[0][0], name.encode())
