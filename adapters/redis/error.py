"""What an error means: an error reply of a Redis server, and an error of the system while connecting to one."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Final, Literal

from backplane.errors import (
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    PublishError,
    PublishOutcomeUnknownError,
)

if TYPE_CHECKING:
    import hiredis

__all__ = [
    "Meaning",
    "connect_error",
    "is_protocol_error",
    "login_error",
    "meaning",
    "outcome_unknown",
    "publish_error",
    "unavailable",
]

Meaning = Literal["refused", "passing", "unclear"]
"""`refused`: asking again does not help. `passing`: the server will take it later. `unclear`: it can be either."""

# By the words an error begins with. Redis lists its codes nowhere; these are those of `src/server.c` and `src/acl.c`
# of Redis 7, of Redis Cluster, and of what managed services refuse.
_MEANINGS: Final[tuple[tuple[Meaning, re.Pattern[str]], ...]] = (
    ("passing", re.compile(r"(BUSY|LOADING|MASTERDOWN|TRYAGAIN|CLUSTERDOWN|READONLY|MISCONF|OOM|NOREPLICAS)\b")),
    ("passing", re.compile(r"ERR max number of clients", re.IGNORECASE)),
    ("refused", re.compile(r"(NOPERM|WRONGPASS|DENIED)\b")),
    ("refused", re.compile(r"ERR (unknown|wrong number of arguments|syntax error|Protocol error)", re.IGNORECASE)),
    ("refused", re.compile(r"ERR .*\b(not (supported|allowed|permitted)|disabled)\b", re.IGNORECASE)),
)


def meaning(reply: hiredis.ReplyError) -> Meaning:
    """Return what an error reply means."""
    for found, pattern in _MEANINGS:
        if pattern.match(str(reply)):
            return found
    return "unclear"


def unavailable(words: str) -> BrokerUnavailableError:
    """Return the error for a link that is not there, or a server that takes nothing at present."""
    return BrokerUnavailableError(words, adapter="redis")


def outcome_unknown(words: str) -> PublishOutcomeUnknownError:
    """Return the error for a publish without an answer."""
    return PublishOutcomeUnknownError(
        f"{words}, before the server's answer; it may have been published", adapter="redis"
    )


def is_protocol_error(reply: hiredis.ReplyError) -> bool:
    """Return whether the server could not read a command: such as one over `proto-max-bulk-len`. It closes then."""
    return str(reply).startswith("ERR Protocol error")


def publish_error(reply: hiredis.ReplyError) -> PublishError:
    """Return what to raise for a publish that the server answered with an error: it was not published."""
    if is_protocol_error(reply):
        return PublishError(
            f"{reply}: set max_payload_bytes to what the server accepts (its proto-max-bulk-len)", adapter="redis"
        )
    return PublishError(str(reply), adapter="redis", retriable=meaning(reply) == "passing")


def login_error(verb: bytes, reply: hiredis.ReplyError, where: str) -> BrokerError | None:
    """Return what to raise for an error in answer to the login's command `verb`; `None` where the login goes on."""
    words = str(reply)
    if words.startswith("NOAUTH"):
        return BrokerAuthenticationError(
            f"{where} wants a password and the URL has none, as in //:password@host: {words}", adapter="redis"
        )
    # A server that cannot save its data answers PING with MISCONF, and publishes all the same.
    if meaning(reply) == "passing" and not words.startswith("MISCONF"):
        return unavailable(f"{where} takes no commands at present: {words}")
    if verb == b"PING" and not words.startswith("DENIED"):  # PING was not granted: an answer all the same
        return None
    return BrokerAuthenticationError(f"{where} refused the credentials: {words}", adapter="redis")


def connect_error(error: Exception, where: str, *, scheme: str = "redis", tls: bool = False) -> BrokerError:
    """Return what to raise for an error while connecting to `where`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return BrokerError(
            f"{where} shows a certificate that is not trusted: {error}", adapter="redis", retriable=False
        )
    words = f"cannot reach {where}: {str(error).removeprefix('redis: ') or type(error).__name__}"
    if tls and isinstance(error, TimeoutError | ssl.SSLError | ConnectionError | BrokerUnavailableError):
        words += f"; where this port speaks no TLS, the scheme is {_other_scheme(scheme)}://"
        words += ", and where it wants a client's certificate, set ssl_certfile and ssl_keyfile"
    elif isinstance(error, BrokerUnavailableError) and scheme != "unix":  # it took the connection and ended it
        words += f"; where this port speaks TLS, the scheme is {_other_scheme(scheme)}://"
    return unavailable(words)


def _other_scheme(scheme: str) -> str:
    """Return the scheme with TLS of one without, and the other way round."""
    family, plus, rest = scheme.partition("+")
    secured = {"redis": "rediss", "rediss": "redis", "valkey": "valkeys", "valkeys": "valkey"}
    return f"{secured.get(family, family)}{plus}{rest}"
