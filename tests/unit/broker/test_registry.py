"""`backplane.broker.registry`: from a URL to a configured adapter, and the message of every error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from backplane.adapters.memory import MemoryBroadcaster
from backplane.broadcaster import BrokerUrl
from backplane.broker.registry import ENTRY_POINT_GROUP, broadcaster_from_url
from backplane.errors import ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = "s3cr3t"

ACME_ADAPTER = """
from typing import Literal

from pydantic import SecretStr

from backplane.adapters.memory import MemoryBroadcaster
from backplane.broadcaster import Options


class AcmeOptions(Options):
    level: Literal["low", "high"] = "low"
    ratio: float = 1.0
    on: bool = False
    token: SecretStr | None = None


class AcmeBroadcaster(MemoryBroadcaster):
    options_class = AcmeOptions


class PlainBroadcaster(MemoryBroadcaster):
    options_class = Options


class Nested:
    Broadcaster = AcmeBroadcaster
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that installs a distribution with the module `acme_adapter` and these entry points."""

    def install(entry_points: str) -> None:
        metadata = tmp_path / "acme_adapter-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-adapter\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[backplane.adapters]\n{entry_points}\n")
        (tmp_path / "acme_adapter.py").write_text(ACME_ADAPTER)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        monkeypatch.delitem(sys.modules, "acme_adapter", raising=False)

    return install


@pytest.fixture
def acme(install: Callable[[str], None]) -> None:
    """Install a third party's adapters `acme://` and `plain://`."""
    install("acme = acme_adapter:AcmeBroadcaster\nplain = acme_adapter:PlainBroadcaster")


def refusal(url: str) -> str:
    """Return the error with which `url` is refused."""
    with pytest.raises(ConfigurationError) as caught:
        broadcaster_from_url(url)
    return str(caught.value)


def test_adapter_with_its_options() -> None:
    """The scheme selects the class, the query string fills its typed options, and the URL has no query any more."""
    broadcaster = broadcaster_from_url("memory://here?max_payload_bytes=1024")
    assert isinstance(broadcaster, MemoryBroadcaster)
    assert broadcaster.options.max_payload_bytes == 1024
    assert broadcaster.url == BrokerUrl(scheme="memory", netloc="here")


def test_scheme_in_capitals() -> None:
    """A scheme is the same in any case (RFC 3986 section 3.1)."""
    assert isinstance(broadcaster_from_url("MEMORY://"), MemoryBroadcaster)


def test_percent_escapes_in_an_option(acme: None) -> None:
    """An option's value can hold characters that a query string reserves, escaped."""
    broadcaster = broadcaster_from_url("acme://?token=a%26b%3Dc+d")
    assert broadcaster.options.token.get_secret_value() == "a&b=c d"


@pytest.mark.parametrize("url", ["", "localhost", "localhost:6379", "redis:localhost", "/run/x", "1redis://x", "://x"])
def test_no_scheme(url: str) -> None:
    """A text without a scheme is refused with examples, and is not repeated, since it can hold a password."""
    assert refusal(url) == (
        "a broker URL starts with its scheme, such as memory://, ipc://myapp or redis://localhost:6379"
    )


def test_unknown_scheme() -> None:
    """An unknown scheme is refused with the one that was probably meant and all that are known."""
    words = refusal("rediss3://x")
    assert words.startswith("unknown scheme 'rediss3' (did you mean 'rediss'?); known are ")
    assert {"ipc", "memory", "redis", "rediss"} <= set(words.partition("; known are ")[2].split(", "))


def test_unknown_scheme_that_resembles_none() -> None:
    """No hint is given where no known word is similar."""
    assert refusal("xyz://x").startswith("unknown scheme 'xyz'; known are ")


def test_unknown_option() -> None:
    """An unknown option is refused with the one that was probably meant and all that are known."""
    assert refusal("memory://?max_payload_byte=1") == (
        "memory: unknown option 'max_payload_byte' (did you mean 'max_payload_bytes'?); "
        "known are max_history_bytes, max_payload_bytes, wire_format"
    )


def test_options_of_every_adapter(acme: None) -> None:
    """The options of the core are options of every adapter, also of a third party's."""
    assert refusal("plain://?x=1") == "plain: unknown option 'x'; known are wire_format"
    assert broadcaster_from_url("plain://?wire_format=plain").options.wire_format == "plain"


def test_duplicated_option() -> None:
    """An option given twice is refused."""
    assert refusal("memory://?max_payload_bytes=1&max_payload_bytes=1") == (
        "memory: option 'max_payload_bytes' is given twice"
    )


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("ratio=s3cr3t", "acme: ill-typed option: ratio: Input should be a valid number"),
        ("on=s3cr3t", "acme: ill-typed option: on: Input should be a valid boolean"),
        ("level=s3cr3t", "acme: ill-typed option: level: Input should be 'low' or 'high'"),
        ("ratio=&on=true", "acme: ill-typed option: ratio: Input should be a valid number"),
        ("ratio=s3cr3t&on=s3cr3t", "; on: Input should be a valid boolean"),
    ],
)
def test_ill_typed_option(acme: None, query: str, words: str) -> None:
    """An ill-typed option is refused by its name and never by its value, which can be a secret."""
    with pytest.raises(ConfigurationError) as caught:
        broadcaster_from_url(f"acme://?{query}")
    assert words in str(caught.value)
    assert SECRET not in repr(caught.value)
    assert caught.value.__suppress_context__  # pydantic's own error holds the value


def test_option_out_of_range() -> None:
    """A value outside of an option's range is refused with the range."""
    assert refusal("memory://?max_payload_bytes=0") == (
        "memory: ill-typed option: max_payload_bytes: Input should be greater than 0"
    )


@pytest.mark.parametrize("url", ["memory://[::1", "redis://:s3cr3t@[::1/0", "redis://:s3cr3t[@host/0"])
def test_not_a_url(url: str) -> None:
    """A text that cannot be split into the parts of a URL raises ConfigurationError."""
    assert "not a URL" in refusal(url)


# U+2100 is `a/c` under NFKC: `urlsplit` refuses it and repeats everything before the path, password included.
@pytest.mark.parametrize(
    "url", ["redis://:s3cr3t@h\u2100st/0", "memory://:s3cr3t\u2100@host"], ids=["host", "password"]
)
def test_password_of_what_is_not_a_url(url: str) -> None:
    """The error for a URL that Python cannot parse holds no password."""
    assert SECRET not in refusal(url)


@pytest.mark.parametrize("url", ["ipc://a?directory=/tmp/a%00b", "rediss://h?ssl_ca_certs=%00"])
def test_nul(url: str) -> None:
    """The character NUL is refused when the adapter is made, not by a system call or OpenSSL at the start."""
    assert refusal(url).endswith("holds the character NUL")


@pytest.mark.parametrize("reserved", ["/", "?", "#"])
@pytest.mark.parametrize("scheme", ["memory", "redis"])
def test_unescaped_password(scheme: str, reserved: str) -> None:
    """A password that is not percent-escaped is shown neither by the error nor, where there is none, by the URL."""
    try:
        broadcaster = broadcaster_from_url(f"{scheme}://user:{SECRET}{reserved}{SECRET}@host/0")
        shown = f"{broadcaster.url} {broadcaster.url!r}"
    except ConfigurationError as error:
        shown = str(error)
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("scheme", "extra", "package"),
    [
        ("redis", "redis", "hiredis"),
        ("rediss", "redis", "hiredis"),
        ("nats", "nats", "nats.aio.client"),
        ("tls", "nats", "nats.aio.client"),
    ],
)
def test_missing_extra(scheme: str, extra: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the client library of an adapter the error names the command that installs it."""
    monkeypatch.setitem(sys.modules, package, None)
    for module in [
        name for name in sys.modules if name.startswith(("backplane.adapters.redis", "backplane.adapters.nats"))
    ]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(MissingDependencyError) as caught:
        broadcaster_from_url(f"{scheme}://:s3cr3t@localhost")
    assert str(caught.value).startswith(f"{scheme}:// needs a package that is not installed (")
    assert str(caught.value).endswith(f": pip install 'fastapi-backplane[{extra}]'")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value.__cause__, ImportError)
    assert SECRET not in str(caught.value)


def test_third_party(acme: None) -> None:
    """An installed package adds a scheme by an entry point, and its options are validated like any other's."""
    broadcaster = broadcaster_from_url("acme://somewhere?level=high&on=true&ratio=0.5")
    assert type(broadcaster).__module__ == "acme_adapter"
    assert broadcaster.options.model_dump() == {
        "level": "high",
        "ratio": 0.5,
        "on": True,
        "token": None,
        "wire_format": "header",
    }


@pytest.mark.parametrize(
    "target", ["acme_adapter:Nested.Broadcaster", "acme_adapter:AcmeBroadcaster [fast]"], ids=["dotted", "extra"]
)
def test_third_party_by_any_object_reference(install: Callable[[str], None], target: str) -> None:
    """An entry point may name an attribute of an attribute, and an extra, as the packaging specification allows."""
    install(f"acme = {target}")
    assert type(broadcaster_from_url("acme://")).__module__ == "acme_adapter"


def test_third_party_is_known(acme: None) -> None:
    """A third party's scheme is in the hints and lists like the built-in ones."""
    words = refusal("acmee://x")
    assert words.startswith("unknown scheme 'acmee' (did you mean 'acme'?); known are acme, ")


def test_third_party_is_imported_on_demand(acme: None) -> None:
    """A third party's adapter is imported only when a URL names it."""
    broadcaster_from_url("memory://")
    assert "acme_adapter" not in sys.modules


def test_third_party_cannot_replace_a_built_in(install: Callable[[str], None]) -> None:
    """A package cannot replace a built-in scheme."""
    install("memory = acme_adapter:AcmeBroadcaster")
    assert type(broadcaster_from_url("memory://")) is MemoryBroadcaster


def test_third_party_that_does_not_import(install: Callable[[str], None]) -> None:
    """An import error of a third party's adapter is raised unchanged: no extra of this package installs the cause."""
    install("broken = acme_adapter_missing:Broadcaster")
    with pytest.raises(ModuleNotFoundError, match="acme_adapter_missing") as caught:
        broadcaster_from_url("broken://")
    assert not isinstance(caught.value, MissingDependencyError)


def test_entry_point_group() -> None:
    """The group is part of the contract with third parties."""
    assert ENTRY_POINT_GROUP == "backplane.adapters"


def test_built_in_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import error of an adapter that needs no extra is raised as it is."""
    monkeypatch.setitem(sys.modules, "backplane.adapters.memory", None)
    with pytest.raises(ModuleNotFoundError, match=r"backplane\.adapters\.memory") as caught:
        broadcaster_from_url("memory://")
    assert not isinstance(caught.value, MissingDependencyError)
