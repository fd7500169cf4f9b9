"""What of a NATS server's announcements can keep messages from workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.findings import Finding

if TYPE_CHECKING:
    from backplane.adapters.nats.server_info import ServerInfo

__all__ = ["inspect_server"]


def inspect_server(info: ServerInfo, max_payload_bytes: int) -> list[Finding]:
    """Return what was found.

    Args:
        info: What the server announces.
        max_payload_bytes: The largest payload that the options allow.
    """
    return [_payload(info.max_payload, max_payload_bytes), _lame_duck(info.ldm)]


def _payload(allowed: int, wanted: int) -> Finding:
    check = "nats_max_payload"
    if 0 < allowed < wanted:
        text = f"max_payload of the server is {allowed:,} bytes, below the option max_payload_bytes of {wanted:,}"
        cure = "larger publishes raise PayloadTooLargeError: raise max_payload at the server if you need them"
        return Finding(check=check, level="warning", text=text, cure=cure)
    limit = f"{allowed:,} bytes" if allowed > 0 else "without a limit"
    return Finding(check=check, level="ok", text=f"max_payload of the server is {limit}")


def _lame_duck(is_ending: bool) -> Finding:
    check = "nats_lame_duck"
    if is_ending:
        cure = "links move to other servers by themselves; name several in the URL"
        return Finding(
            check=check, level="warning", text="the server is in lame duck mode: it is about to end", cure=cure
        )
    return Finding(check=check, level="ok", text="the server is not about to end")
