"""What a NATS server announces about itself."""

from __future__ import annotations

from pydantic import BaseModel

__all__ = ["ServerInfo", "read_info"]


class ServerInfo(BaseModel):
    """What a server announces in INFO, as far as it is used here.

    Attributes:
        server_id: Another one after each start of the server.
        version: As `2.10.29`.
        max_payload: Largest payload for this connection, in bytes; 0 or less means no limit.
        headers: Whether it supports headers.
        jetstream: Whether it keeps streams itself; another server of its cluster may.
        nonce: What an NKey has to sign.
        tls_required: Whether it expects a TLS handshake next.
        tls_available: Whether it accepts one.
        connect_urls: `host:port` of the servers of its cluster.
        ldm: Whether it is in lame duck mode, about to close its connections.
    """

    server_id: str = ""
    version: str = ""
    max_payload: int = 0
    headers: bool = False
    jetstream: bool = False
    nonce: str | None = None
    tls_required: bool = False
    tls_available: bool = False
    connect_urls: list[str] | None = None
    ldm: bool = False


def read_info(text: bytes) -> ServerInfo:
    """Return what the arguments of an INFO contain.

    Raises:
        ValueError: They cannot be read. The message does not repeat them.
    """
    try:
        return ServerInfo.model_validate_json(text)
    except ValueError:
        raise ValueError("an INFO that cannot be read") from None
