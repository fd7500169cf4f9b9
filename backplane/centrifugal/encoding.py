"""The two encodings of the Centrifugal client protocol, JSON and Protobuf.

Both take and return the same: commands, results and pushes are dicts with the names of `schema.py`. Messages of a frame
are in order, and independent of each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from backplane.centrifugal.command import MAX_COMMAND_BYTES, MAX_COMMANDS, BadFrameError, Command
from backplane.centrifugal.json_encoding import JsonEncoding
from backplane.centrifugal.protobuf import ProtobufEncoding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["JSON", "MAX_COMMANDS", "MAX_COMMAND_BYTES", "PROTOBUF", "BadFrameError", "Command", "Encoding"]


class Encoding(Protocol):
    """How frames are read and written. Frames are `str` in JSON and `bytes` in Protobuf, as WebSocket sends them."""

    @property
    def name(self) -> Literal["json", "protobuf"]:
        """How it is named in logs and statistics."""
        ...

    @property
    def ping(self) -> str | bytes:
        """The frame of a ping: an empty reply."""
        ...

    def decode(self, frame: str | bytes) -> list[Command]:
        """Return the commands of a frame, at least one.

        Takes time and memory linear in the size of the frame, whatever it holds; the server bounds that size.

        Raises:
            BadFrameError: One of the commands is not of the protocol. None of the frame is executed.
        """
        ...

    def reply(self, command_id: int, name: str, result: Mapping[str, Any]) -> str | bytes:
        """Return the frame of a reply. `name` is that of the command; a result without fields is sent too.

        `bytes` of the result are written as they are: `embed` makes them of what the application returns.
        """
        ...

    def error(self, command_id: int, code: int, message: str, temporary: bool) -> str | bytes:
        """Return the frame of a reply that is an error."""
        ...

    def push(self, channel: str, name: str, body: Mapping[str, Any]) -> str | bytes:
        """Return the frame of a push. `name` is one of those of `schema.REPLY`; the channel of a `message` is empty."""
        ...

    def publication(
        self,
        channel: str,
        data: str | bytes,
        *,
        is_json: bool,
        offset: int | None,
        info: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str | bytes:
        """Return the frame of a push of a publication: the same as `push` with a `publication_body`, but faster.

        It is the same for all clients of the channel. `embed` documents what becomes of `data`. An `offset` of 0 or
        `None` is not sent, nor are `tags` that are empty; `info` is a `schema.CLIENT_INFO`.
        """
        ...

    def publication_body(
        self,
        data: str | bytes,
        *,
        is_json: bool,
        offset: int | None,
        info: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Mapping[str, Any]:
        """Return a publication for the `publications` of a result."""
        ...

    def join(self, frames: Sequence[Any]) -> str | bytes:
        """Return one frame that holds what these frames of the same encoding hold, in their order."""
        ...

    def embed(self, data: str | bytes, is_json: bool) -> bytes:
        """Return data of the application as the value of a field of the kind `BYTES`.

        Protobuf: the bytes, or the text in UTF-8, unchanged.

        JSON: a text that is JSON is embedded as it is, in one line; `is_json` states the same of bytes. It is checked,
        at the cost of parsing it: another program can mark any text as JSON, and would break the frame with it. Any
        other text becomes a JSON string, also one that is nested deeper than 200 levels or holds an integer of more
        than 4,300 digits, at which parsers fail. Other bytes become a JSON string in base64, which a publication also
        states by the tag `encoding`.
        """
        ...


JSON: Final[Encoding] = JsonEncoding()
PROTOBUF: Final[Encoding] = ProtobufEncoding()
