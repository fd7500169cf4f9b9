"""`backplane.adapters.redis.error`: what an error reply means, in one table."""

from __future__ import annotations

import ssl

import hiredis
import pytest

from backplane.adapters.redis.error import connect_error, login_error, meaning, publish_error, unavailable
from backplane.errors import BrokerAuthenticationError, BrokerUnavailableError, PublishError


@pytest.mark.parametrize(
    "words",
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
def test_passing_state_of_a_server_is_no_refusal(words: str) -> None:
    """What the server will accept later is retriable for a publish and unavailable for a login."""
    reply = hiredis.ReplyError(words)
    assert meaning(reply) == "passing"
    assert publish_error(reply).retriable
    assert isinstance(login_error(b"AUTH", reply, "here"), BrokerUnavailableError) != words.startswith("MISCONF")


@pytest.mark.parametrize(
    "words",
    [
        "NOPERM this user has no permissions to access one of the channels used as arguments",
        "ERR unknown command 'SUBSCRIBE', with args beginning with: 'room'",
        "ERR unknown command `subscribe`, with args beginning with: `room`",
        "ERR command 'subscribe' is not supported by this proxy",
        "ERR This command is disabled",
        "ERR Protocol error: invalid bulk length",
    ],
)
def test_rule_of_a_server_is_a_refusal(words: str) -> None:
    """What only a change of the server's rules can mend is refused for good."""
    reply = hiredis.ReplyError(words)
    assert meaning(reply) == "refused"
    assert not publish_error(reply).retriable


@pytest.mark.parametrize(
    "words", ["", "ERR", "ERR no upstream host", "upstream failure", "NEWCODE words", "BUSYGROUP x"]
)
def test_unknown_words_are_unclear(words: str) -> None:
    """An error that nobody has foreseen neither confirms nor refuses."""
    assert meaning(hiredis.ReplyError(words)) == "unclear"


def test_protocol_error_names_the_option() -> None:
    """A payload over the server's limit is refused with the option that keeps the next ones within it."""
    error = publish_error(hiredis.ReplyError("ERR Protocol error: invalid bulk length"))
    assert type(error) is PublishError
    assert "max_payload_bytes" in str(error)


@pytest.mark.parametrize(
    ("verb", "words", "expected"),
    [
        (b"PING", "NOAUTH Authentication required.", "wants a password and the URL has none"),
        (b"AUTH", "WRONGPASS invalid username-password pair or user is disabled.", "refused the credentials"),
        (b"AUTH", "ERR AUTH <password> called without any password configured", "refused the credentials"),
        (b"CLIENT", "NOPERM this user has no permissions to run the 'client|setname' command", "client|setname"),
        (b"PING", "DENIED Redis is running in protected mode", "protected mode"),
    ],
)
def test_refused_login_is_an_authentication_error(verb: bytes, words: str, expected: str) -> None:
    """What the server does not let in is no outage, and is not tried again."""
    error = login_error(verb, hiredis.ReplyError(words), "here")
    assert isinstance(error, BrokerAuthenticationError)
    assert expected in str(error)


@pytest.mark.parametrize("words", ["NOPERM this user has no permissions to run the 'ping' command", "MISCONF disk"])
def test_refused_ping_is_an_answer(words: str) -> None:
    """A server that grants no PING, or cannot save its data, publishes all the same."""
    assert login_error(b"PING", hiredis.ReplyError(words), "here") is None


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
def test_wrong_kind_of_port_is_hinted_at(error: Exception, scheme: str, tls: bool, hint: str) -> None:
    """A connection that ends as one to a port of the other kind does names the scheme of that kind."""
    found = connect_error(error, "here", scheme=scheme, tls=tls)
    assert isinstance(found, BrokerUnavailableError)
    assert hint in str(found)


def test_refused_connection_hints_at_nothing() -> None:
    """Where nobody listens the scheme is not to blame."""
    assert "scheme" not in str(connect_error(ConnectionRefusedError("refused"), "here"))
