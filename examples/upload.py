"""Upload of a file in binary chunks: a size limit, an end marker, a checksum, safe names, and a note to the room.

A client sends `{"name": "a.txt", "size_bytes": 5, "sha256": "2cf2..."}`, then the content as binary messages, then
`{"end": true}`. It is answered `{"stored": ...}` or `{"error": ...}`, and may send the next file. Everyone else in the
room is told of what was stored.

Run it in this folder; files go to the folder UPLOADS:

    UPLOADS=uploads uvicorn upload:app
"""

import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Annotated, Literal

import anyio.to_thread
from fastapi import FastAPI, WebSocket
from pydantic import BaseModel, Field

from backplane import Backplane, CloseCode, Connection, InvalidMessageError, Limits
from backplane.connection.validation import parse
from backplane.health_routes import health_routes

MAX_FILE_BYTES = 10 * 1024 * 1024
FOLDER = Path(os.environ.get("UPLOADS", "uploads"))


class Header(BaseModel):
    """The beginning of an upload. A name is a plain one: no path, no leading dot, nothing a shell would mind."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
    size_bytes: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class End(BaseModel):
    """The end of an upload."""

    end: Literal[True]


backplane = Backplane(limits=Limits(max_message_bytes=64 * 1024))
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))


@app.websocket("/rooms/{room}")
async def upload(websocket: WebSocket, room: str) -> None:
    """Take one file after the other. What does not fit closes the connection, as the rest of it would come too."""
    channel = f"uploads:{room}"
    async with backplane.connect(websocket, channel) as connection:
        async for header in connection.iter(Header):
            with temporary_file() as file:
                digest = await receive_content(connection, file, header.size_bytes)
                if digest is None:  # closed, or gone: nothing is kept
                    continue
                # Named by content as well: nobody's file replaces another one.
                stored = f"{digest[:16]}-{header.name}"
                if digest == header.sha256:
                    await anyio.to_thread.run_sync(os.replace, file.name, FOLDER / stored)
            if digest != header.sha256:
                await connection.send({"error": "sha256 does not match: send it again"})
                continue
            await connection.send({"stored": stored})
            await backplane.publish(channel, {"uploaded": stored, "size_bytes": header.size_bytes}, exclude=connection)


async def receive_content(connection: Connection, file: IO[bytes], size_bytes: int) -> str | None:
    """Write the chunks into `file` and return their SHA-256, or `None` if the connection has ended instead."""
    digest, received = hashlib.sha256(), 0
    async for data in connection:
        if isinstance(data, str):
            if received < size_bytes or not is_end(data):
                await connection.close(CloseCode.INVALID_DATA, f"expected {size_bytes} bytes, then the end marker")
                return None
            await anyio.to_thread.run_sync(file.flush)
            return digest.hexdigest()
        received += len(data)
        if received > size_bytes:
            await connection.close(CloseCode.TOO_BIG, f"announced were {size_bytes} bytes")
            return None
        digest.update(data)
        await anyio.to_thread.run_sync(file.write, data)
    return None


def is_end(data: str) -> bool:
    """Return whether a text is the end marker."""
    try:
        parse(End, data)
    except InvalidMessageError:
        return False
    return True


@contextmanager
def temporary_file() -> Generator[IO[bytes]]:
    """Open a file beside the finished ones; it is gone in the end, if it was not renamed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=FOLDER, prefix=".part-", delete=False) as file:
        try:
            yield file
        finally:
            Path(file.name).unlink(missing_ok=True)
