"""`backplane.adapters.redis.errors`: what an error reply means, and what an error while connecting means."""

from __future__ import annotations

import ssl

import hiredis
import pytest

from backplane.adapters.redis.errors import (
    classify_reply,
    connect_error,
    error_text,
    is_denied,
    is_read_only,
    login_error,
    publish_error,
    unavailable,
)
from backplane.errors import BrokerAuthenticationError, BrokerUnavailableError, PublishError


@pytest.mark.parametrize(
    "message",
    [
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "LOADING Redis is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "CLUSTERDOWN The cluster is down",
        "READONLY You can't write against a read only replica.",
        "MISCONF Redis is configured to save RDB snapshots",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "NOREPLICAS Not enough good replicas to write.",
        "ERR max number of clients reached",
    ],
)
def test_passing_state_of_a_server_is_retriable(message: str) -> None:
    """What the server accepts later is a retriable error for a publish, and an unavailable broker for a login."""
    reply = hiredis.ReplyError(message)
    assert classify_reply(reply) == "passing"
    assert publish_error(reply).retriable
    assert isinstance(login_error(b"AUTH", reply, "here"), BrokerUnavailableError) != message.startswith("MISCONF")


@pytest.mark.parametrize(
    "message",
    [
        "NOPERM this user has no permissions to access one of the channels used as arguments",
        "ERR unknown command 'SUBSCRIBE', with args beginning with: 'room'",
        "ERR unknown command `subscribe`, with args beginning with: `room`",
        "ERR command 'subscribe' is not supported by this proxy",
        "ERR This command is disabled",
        "ERR Protocol error: invalid bulk length",
    ],
)
def test_rule_of_a_server_is_a_refusal(message: str) -> None:
    """What the server accepts only after a change of its rules is refused, and not retriable."""
    reply = hiredis.ReplyError(message)
    assert classify_reply(reply) == "refused"
    assert not publish_error(reply).retriable


@pytest.mark.parametrize(
    "message", ["", "ERR", "ERR no upstream host", "upstream failure", "NEWCODE words", "BUSYGROUP x"]
)
def test_unknown_error_is_unclear(message: str) -> None:
    """An error reply that the table does not hold neither confirms nor refuses."""
    assert classify_reply(hiredis.ReplyError(message)) == "unclear"


def test_protocol_error_names_the_option() -> None:
    """A payload over the server's limit is refused with the option that keeps the next ones within it."""
    error = publish_error(hiredis.ReplyError("ERR Protocol error: invalid bulk length"))
    assert type(error) is PublishError
    assert "max_payload_bytes" in str(error)


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        (b"PING", "NOAUTH Authentication required.", "wants a password and the URL has none"),
        (b"AUTH", "WRONGPASS invalid username-password pair or user is disabled.", "refused the credentials"),
        (b"AUTH", "ERR AUTH <password> called without any password configured", "refused the credentials"),
        (b"CLIENT", "NOPERM this user has no permissions to run the 'client|setname' command", "client|setname"),
        (b"PING", "DENIED Redis is running in protected mode", "protected mode"),
    ],
)
def test_refused_login_is_an_authentication_error(command: bytes, message: str, expected: str) -> None:
    """A refused login is an authentication error, which is not tried again."""
    error = login_error(command, hiredis.ReplyError(message), "here")
    assert isinstance(error, BrokerAuthenticationError)
    assert expected in str(error)


@pytest.mark.parametrize("message", ["NOPERM this user has no permissions to run the 'ping' command", "MISCONF disk"])
def test_refused_ping_does_not_fail_the_login(message: str) -> None:
    """A server that denies PING, or that cannot save its data, publishes all the same."""
    assert login_error(b"PING", hiredis.ReplyError(message), "here") is None


@pytest.mark.parametrize(
    ("error", "scheme", "tls", "hint"),
    [
        (TimeoutError("no answer within 3 s"), "rediss", True, "speaks no TLS, the scheme is redis://"),
        (ssl.SSLError("wrong version number"), "valkeys", True, "speaks no TLS, the scheme is valkey://"),
        (ConnectionResetError(), "rediss+sentinel", True, "speaks no TLS, the scheme is redis+sentinel://"),
        (unavailable("the connection ended"), "redis", False, "speaks TLS, the scheme is rediss://"),
        (unavailable("the connection ended"), "valkey+sentinel", False, "the scheme is valkeys+sentinel://"),
    ],
)
def test_port_of_the_other_kind_names_the_scheme(error: Exception, scheme: str, tls: bool, hint: str) -> None:
    """An error as of a port with TLS where none is spoken, or the other way round, names the other scheme."""
    found = connect_error(error, "here", scheme=scheme, tls=tls)
    assert isinstance(found, BrokerUnavailableError)
    assert hint in str(found)


def test_refused_connection_names_no_scheme() -> None:
    """Where no server listens, the error does not blame the scheme."""
    assert "scheme" not in str(connect_error(ConnectionRefusedError("refused"), "here"))


@pytest.mark.parametrize(
    ("message", "reply_class"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'. script: 1, on @user_script:8.", "passing"),
        (
            "ERR Error running script (call to f_1): @user_script:8: @user_script: 8: -OOM command not allowed when "
            "used memory > 'maxmemory'.",
            "passing",
        ),
        (
            "ERR Error running script (call to f_1): @user_script:8: @user_script: 8: -READONLY You can't write "
            "against a read only replica.",
            "passing",
        ),
        ("ERR The user executing the script can't publish to the channel mentioned in the command", "refused"),
        ("NOSCRIPT No matching script. Please use EVAL.", "passing"),
    ],
)
def test_error_of_a_command_in_a_script_has_its_class(message: str, reply_class: str) -> None:
    """An error inside a script means what it means outside one, also in the form that it has before Redis 7."""
    reply = hiredis.ReplyError(message)
    assert classify_reply(reply) == reply_class
    assert is_read_only(reply) == ("READONLY" in message)
    assert is_denied(reply) == ("executing the script" in message)
    assert not error_text(reply).startswith("ERR Error running")
