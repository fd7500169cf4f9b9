"""Errors of the Redis adapters: what an error reply of a server means, and what an error of the system means."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Final, Literal

from backplane.adapters.shared.error_chain import certificate_error, reason_of
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
    "ReplyClass",
    "classify_reply",
    "connect_error",
    "error_text",
    "is_denied",
    "is_protocol_error",
    "is_read_only",
    "login_error",
    "outcome_unknown",
    "publish_error",
    "recall_error",
    "unavailable",
]

ReplyClass = Literal["refused", "passing", "unclear"]
"""`refused`: a repetition does not help. `passing`: the server accepts it later. `unclear`: it can be either."""

# By the code an error reply begins with. Redis documents no list of its codes; these are those of `src/server.c` and
# `src/acl.c` of Redis 7, of Redis Cluster, and of managed services that refuse commands.
_CLASSES: Final[tuple[tuple[ReplyClass, re.Pattern[str]], ...]] = (
    (
        "passing",
        re.compile(r"(BUSY|LOADING|MASTERDOWN|TRYAGAIN|CLUSTERDOWN|READONLY|MISCONF|OOM|NOREPLICAS|NOSCRIPT)\b"),
    ),
    ("passing", re.compile(r"ERR max number of clients", re.IGNORECASE)),
    ("refused", re.compile(r"(NOPERM|WRONGPASS|DENIED)\b")),
    ("refused", re.compile(r".*The user executing the script can't ")),
    ("refused", re.compile(r"ERR (unknown|wrong number of arguments|syntax error|Protocol error)", re.IGNORECASE)),
    ("refused", re.compile(r"ERR .*\b(not (supported|allowed|permitted)|disabled)\b", re.IGNORECASE)),
)

# Before Redis 7 the error of a command in a script has this in front of it.
_OF_SCRIPT: Final = re.compile(r"ERR Error running script .*@user_script: ?\d+: -?(?=[A-Z]+ )")


def error_text(reply: hiredis.ReplyError) -> str:
    """Return an error reply so that its code is at the begin, also where a command in a script failed."""
    return _OF_SCRIPT.sub("", str(reply), count=1)


def is_denied(reply: hiredis.ReplyError) -> bool:
    """Return whether an ACL denies the command, or a command in a script."""
    text = error_text(reply)
    return text.startswith("NOPERM") or "The user executing the script can't " in text


def is_read_only(reply: hiredis.ReplyError) -> bool:
    """Return whether the server is a replica, which refuses every command that writes."""
    return error_text(reply).startswith("READONLY")


def classify_reply(reply: hiredis.ReplyError) -> ReplyClass:
    """Return what an error reply means for the command that it answers."""
    text = error_text(reply)
    for reply_class, pattern in _CLASSES:
        if pattern.match(text):
            return reply_class
    return "unclear"


def unavailable(reason: str) -> BrokerUnavailableError:
    """Return the error for a lost link, or for a server that accepts no commands at present."""
    return BrokerUnavailableError(reason, adapter="redis")


def outcome_unknown(reason: str) -> PublishOutcomeUnknownError:
    """Return the error for a publish without a reply."""
    return PublishOutcomeUnknownError(
        f"{reason}, before the server's answer; it may have been published", adapter="redis"
    )


def is_protocol_error(reply: hiredis.ReplyError) -> bool:
    """Return whether the server could not read a command, such as one over `proto-max-bulk-len`. It closes then."""
    return str(reply).startswith("ERR Protocol error")


def publish_error(reply: hiredis.ReplyError) -> PublishError:
    """Return what to raise for a publish that the server answered with an error: it was not published."""
    if is_protocol_error(reply):
        return PublishError(
            f"{reply}: set max_payload_bytes to what the server accepts (its proto-max-bulk-len)", adapter="redis"
        )
    return PublishError(str(reply), adapter="redis", retriable=classify_reply(reply) == "passing")


def recall_error(reply: hiredis.ReplyError, who: str) -> BrokerError:
    """Return what to raise for a read of a history that was answered with an error.

    Args:
        reply: The reply.
        who: What answered, as the error calls it: the server, or the node.
    """
    if classify_reply(reply) == "passing":
        return unavailable(f"the {who} recalls nothing at present: {error_text(reply)}")
    return BrokerError(f"the {who} refused to recall: {error_text(reply)}", adapter="redis")


def login_error(command: bytes, reply: hiredis.ReplyError, where: str) -> BrokerError | None:
    """Return what to raise for an error reply to a command of the login; `None` where the login goes on.

    Args:
        command: The command that was answered: `AUTH`, `CLIENT`, `PING`.
        reply: The reply.
        where: The server, as errors show it.
    """
    message = str(reply)
    if message.startswith("NOAUTH"):
        return BrokerAuthenticationError(
            f"{where} wants a password and the URL has none, as in //:password@host: {message}", adapter="redis"
        )
    # A server that cannot save its data answers PING with MISCONF, and publishes all the same.
    if classify_reply(reply) == "passing" and not message.startswith("MISCONF"):
        return unavailable(f"{where} takes no commands at present: {message}")
    if command == b"PING" and not message.startswith("DENIED"):  # an ACL denies PING: the login itself was accepted
        return None
    return BrokerAuthenticationError(f"{where} refused the credentials: {message}", adapter="redis")


def connect_error(error: Exception, where: str, *, scheme: str = "redis", tls: bool = False) -> BrokerError:
    """Return what to raise for an error while connecting to `where`.

    A port that speaks TLS and one that does not end each other's connections without an explanation, so the message
    names the scheme of the other kind where the error looks like that.
    """
    if (untrusted := certificate_error(error)) is not None:
        return BrokerError(
            f"{where} shows a certificate that is not trusted: {untrusted}", adapter="redis", retriable=False
        )
    message = f"cannot reach {where}: {reason_of(error) or type(error).__name__}"
    if tls and isinstance(error, TimeoutError | ssl.SSLError | ConnectionError | BrokerUnavailableError):
        message += f"; where this port speaks no TLS, the scheme is {_other_scheme(scheme)}://"
        message += ", and where it wants a client's certificate, set ssl_certfile and ssl_keyfile"
    elif isinstance(error, BrokerUnavailableError) and scheme != "unix":  # the server accepted, then closed
        message += f"; where this port speaks TLS, the scheme is {_other_scheme(scheme)}://"
    return unavailable(message)


def _other_scheme(scheme: str) -> str:
    """Return the scheme with TLS of one without, and the other way round."""
    family, plus, rest = scheme.partition("+")
    other = {"redis": "rediss", "rediss": "redis", "valkey": "valkeys", "valkeys": "valkey"}
    return f"{other.get(family, family)}{plus}{rest}"
