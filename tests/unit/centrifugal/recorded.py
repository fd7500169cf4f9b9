"""Frames between official SDKs and the reference server, recorded once, and what each of them holds.

`transcripts/`: centrifuge-js 5.8.0, centrifuge-python 0.7.0 and centrifuge-go 0.12.1 with a server on the Go library
centrifuge 0.40.1, in the order of the frames. `C>` is a frame of the client and `S<` one of the server; of a binary
frame the bytes are there in hexadecimal, and below it each message as the Protobuf library of Google prints it, with
64-bit numbers as texts and bytes in base64. `prototype-` files are played by a server on Starlette.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RECORDED", "Recorded"]

_APPLICATION_DATA: Final = {"data", "conn_info", "chan_info"}
_LONG_NUMBERS: Final = {"flag", "offset"}


class Recorded(NamedTuple):
    """One frame.

    Attributes:
        name: The file and the line.
        encoding: How it is encoded.
        from_client: It is one of the client.
        frame: What was sent.
        messages: The commands or replies in it, with bytes as `Encoding` has them.
    """

    name: str
    encoding: Literal["json", "protobuf"]
    from_client: bool
    frame: str | bytes
    messages: list[dict[str, Any]]


def _read(file: Path) -> Iterator[Recorded]:
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if not line.startswith(("C> ", "S< ")) or line[3:].startswith("close"):
            continue
        following: list[str] = []
        for after in lines[number + 1 :]:
            if not after.startswith(("   {", "     = ")):
                break
            following.append(after.strip())
        name, from_client = f"{file.stem}:{number + 1}", line[0] == "C"
        if line[3:].startswith("hex "):
            shown = [json.loads(after.partition(" bytes ")[2]) for after in following]
            frame = bytes.fromhex(line[7:])
            yield Recorded(name, "protobuf", from_client, frame, [_of_protobuf(message) for message in shown])
        else:
            texts = [line[3:], *following]
            messages = [_of_json(json.loads(text)) for text in texts]
            yield Recorded(name, "json", from_client, "\n".join(texts), messages)


def _of_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_of_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: json.dumps(item, separators=(",", ":")).encode() if name in _APPLICATION_DATA else _of_json(item)
        for name, item in value.items()
    }


def _of_protobuf(value: Any, name: str = "") -> Any:
    if isinstance(value, list):
        return [_of_protobuf(item) for item in value]
    if isinstance(value, dict):
        return {name: _of_protobuf(item, name) for name, item in value.items()}
    if name in _APPLICATION_DATA:
        return b64decode(value)
    return int(value) if name in _LONG_NUMBERS else value


RECORDED: Final = [
    recorded for file in sorted((Path(__file__).parent / "transcripts").glob("*.txt")) for recorded in _read(file)
]
