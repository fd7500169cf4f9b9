"""`backplane.broadcaster`: URLs and what they mask, options, and what every adapter inherits."""

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from backplane.broadcaster import Broadcaster, BrokerUrl, Capabilities, Options
from backplane.errors import ConfigurationError
from tests.unit.doubles import ControlledBroadcaster

SECRET = "s3cr3t"

# The marker is at both ends, so that either half of a password that is cut in two is found.
passwords = st.text().map(lambda text: f"{SECRET}{text}{SECRET}")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("memory://", ("memory", None, None, "", "")),
        ("ipc://myapp", ("ipc", None, None, "myapp", "")),
        ("REDIS://localhost", ("redis", None, None, "localhost", "")),
        ("redis://localhost:6379/0", ("redis", None, None, "localhost:6379", "/0")),
        ("redis://user:word@host:1/2?prefix=a#b", ("redis", "user", "word", "host:1", "/2")),
        ("redis://:word@host", ("redis", None, "word", "host", "")),
        ("redis://user@host", ("redis", "user", None, "host", "")),
        ("redis://user:@host", ("redis", "user", "", "host", "")),
        ("redis://u%40x:p%3A%2F%40%23%25w@host/a%20b", ("redis", "u@x", "p:/@#%w", "host", "/a b")),
        ("redis://user:a:b@host", ("redis", "user", "a:b", "host", "")),
        ("redis://user:a@b@host", ("redis", "user", "a@b", "host", "")),
        ("redis://u:w@[2001:db8::1]:6379/0", ("redis", "u", "w", "[2001:db8::1]:6379", "/0")),
        ("redis://[::1]", ("redis", None, None, "[::1]", "")),
        ("kafka://a:1,b:2,c:3/topic", ("kafka", None, None, "a:1,b:2,c:3", "/topic")),
        ("ipc:///run/app.sock", ("ipc", None, None, "", "/run/app.sock")),
    ],
)
def test_parse(url: str, parts: tuple[str, str | None, str | None, str, str]) -> None:
    """A URL is split into its parts, with percent-escapes resolved and without the query."""
    parsed = BrokerUrl.parse(url)
    assert (parsed.scheme, parsed.username, parsed.password, parsed.netloc, parsed.path) == parts


@pytest.mark.parametrize(
    "url", ["redis://u:w@a:1,b:2/x", "redis://u:w@a:1,redis://b:2/x", "redis://u:w@a:1,REDIS://u:w@b:2/x?prefix=y"]
)
def test_servers_may_repeat_scheme_and_user(url: str) -> None:
    """Several servers are given as one URL, or as several URLs separated by commas."""
    parsed = BrokerUrl.parse(url)
    assert (parsed.username, parsed.password, parsed.netloc, parsed.path) == ("u", "w", "a:1,b:2", "/x")


@pytest.mark.parametrize("url", ["redis://u:word@a,v:word@b", "redis://u@a:1,v:word@b:2", "redis://u:word@a,u:word@b"])
def test_a_login_in_front_of_each_host_is_refused(url: str) -> None:
    """It would be read as one long password, and only the last host would be used."""
    with pytest.raises(ValueError, match="stand once, in front of the first") as caught:
        BrokerUrl.parse(url)
    assert "word@" not in str(caught.value)
    assert BrokerUrl.parse("redis://u:a,b@host").password == "a,b"


@pytest.mark.parametrize("url", ["redis://u:w@a,redis://v:w@b", "redis://a,redis://u:w@b"])
def test_servers_of_two_users_are_refused(url: str) -> None:
    """A list of servers with two users is refused, and the error shows neither."""
    with pytest.raises(ValueError, match="share one user") as caught:
        BrokerUrl.parse(url)
    assert "w" not in str(caught.value).replace("write", "")


@pytest.mark.parametrize(
    ("netloc", "servers"),
    [
        ("", [("localhost", 7)]),
        ("one", [("one", 7)]),
        (":1", [("localhost", 1)]),
        ("one:5432,two", [("one", 5432), ("two", 7)]),
        ("[::1]:1,[2001:db8::2],10.0.0.1", [("::1", 1), ("2001:db8::2", 7), ("10.0.0.1", 7)]),
        ("[fe80::1%eth0]:1", [("fe80::1%eth0", 1)]),
    ],
)
def test_servers(netloc: str, servers: list[tuple[str, int]]) -> None:
    """Each server of a list has a host and a port, and both have a default."""
    assert BrokerUrl(scheme="redis", netloc=netloc).servers(7, adapter="redis") == servers


@pytest.mark.parametrize(
    "wrong",
    [
        *("one:notaport", "one:99999", "one:-1", "[::1", "one:1:2", "user:word@one", ""),
        *("[::1]x:1", "%2Frun%2Fredis.sock", "%5B%3A%3A1%5D:1", " one", "one\x00"),
    ],
)
def test_servers_that_are_none(wrong: str) -> None:
    """What is not `host:port` is refused, and nothing after its first colon is shown."""
    with pytest.raises(ConfigurationError, match=r"^redis: '.*' is not host:port") as refused:
        BrokerUrl(scheme="redis", netloc=f"two:1,{wrong}").servers(7, adapter="redis")
    assert "word" not in str(refused.value)


@given(st.text(min_size=1), st.text(), st.text())
def test_escapes(username: str, password: str, path: str) -> None:
    """Any percent-escaped user name, password and path is parsed to its original."""
    url = f"redis://{quote(username, safe='')}:{quote(password, safe='')}@host:1/{quote(path, safe='')}"
    parsed = BrokerUrl.parse(url)
    assert (parsed.username, parsed.password, parsed.netloc, parsed.path) == (username, password, "host:1", f"/{path}")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("redis://localhost:6379/0?prefix=a", "redis://localhost:6379/0"),
        ("redis://user:word@host/0", "redis://user:***@host/0"),
        ("redis://:word@host", "redis://:***@host"),
        ("redis://user:@host", "redis://user:***@host"),
        ("redis://user@host", "redis://user@host"),
        ("rediss://u:w@[::1]:6379/0", "rediss://u:***@[::1]:6379/0"),
    ],
)
def test_masking(url: str, shown: str) -> None:
    """The text of a URL masks the password and leaves out the query."""
    assert str(BrokerUrl.parse(url)) == shown


@given(passwords)
def test_password_is_never_shown(password: str) -> None:
    """Neither `str` nor `repr` nor formatting shows any part of a password."""
    url = BrokerUrl.parse(f"redis://user:{quote(password, safe='')}@host:1/0")
    assert url.password == password
    assert SECRET not in f"{url} {url!r} {[url]}"


@given(passwords)
@example("s3cr3t/s3cr3t")
@example("s3cr3t?s3cr3t")
@example("s3cr3t#s3cr3t")
def test_unescaped_password_is_never_shown(password: str) -> None:
    """A password that is not percent-escaped is refused or masked, and shown in neither case."""
    try:
        url = BrokerUrl.parse(f"redis://user:{password}@host:1/0")
        shown = f"{url} {url!r}"
    except ValueError as error:
        shown = f"{error} {error!r}"
    assert SECRET not in shown


@pytest.mark.parametrize("url", ["redis://[::1", "redis://[nonsense]/0"])
def test_no_url(url: str) -> None:
    """A text that is not a URL raises `ValueError`, and the error repeats no part of it."""
    with pytest.raises(ValueError, match=r"^this is not a URL$"):
        BrokerUrl.parse(url)


def test_unknown_option_is_refused() -> None:
    """An undeclared option is refused, and options are immutable."""

    class MyOptions(Options):
        size: int = 1

    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        MyOptions.model_validate({"syze": 2})
    options: Any = MyOptions(size=2)
    with pytest.raises(ValidationError, match="frozen"):
        options.size = 3


def test_adapter_keeps_its_url_and_options() -> None:
    """A constructed adapter has its URL and its options, and has opened nothing."""
    broadcaster = ControlledBroadcaster()
    assert (broadcaster.url, broadcaster.options) == (BrokerUrl(scheme="controlled"), Options())
    assert broadcaster.sink is None


def test_adapter_without_the_contract() -> None:
    """A class that lacks a method of the contract cannot be instantiated."""

    class Half(Broadcaster):
        @property
        def capabilities(self) -> Capabilities:
            raise NotImplementedError

    half: Any = Half
    with pytest.raises(TypeError, match=r"publish.*start.*stop.*subscribe.*unsubscribe"):
        half(BrokerUrl(scheme="half"), Options())


def test_capabilities() -> None:
    """By default an adapter does not resume; every other capability must be given."""
    capabilities = Capabilities(brokered=True, reach="host", publish_returns="sent", max_payload_bytes=1)
    assert capabilities.resumes is False
    capabilities_class: Any = Capabilities
    with pytest.raises(TypeError, match=r"brokered.*reach.*publish_returns.*max_payload_bytes"):
        capabilities_class()
