"""`backplane.web.origin`: which web pages may open a socket."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import ConfigurationError
from backplane.web.origin import OriginRule


@pytest.mark.parametrize("allowed", [None, "*", [], ["https://shop.example"]])
def test_no_browser(allowed: Any) -> None:
    """A client without the header is no browser, and comes in under every rule."""
    assert OriginRule(allowed).refusal(None, "shop.example") is None


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://shop.example", "shop.example"),
        ("http://shop.example", "shop.example"),
        ("https://shop.example", "shop.example:443"),
        ("https://shop.example:443", "shop.example"),
        ("http://shop.example:80", "shop.example"),
        ("http://localhost:8000", "localhost:8000"),
        ("https://Shop.Example", "SHOP.example"),
        ("https://shop.example.", "shop.example."),
        ("https://shop.example.", "shop.example"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://[::1]", "[0:0:0:0:0:0:0:1]:80"),
        ("https://xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("http://my_service:8000", "my_service:8000"),
        ("capacitor://localhost", "localhost"),
        ("http://localhost:8000", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000", "localhost:8000"),
        ("http://[::1]:8000", "localhost:8000"),
        ("http://127.0.0.1:8000", "127.1.2.3:8000"),
    ],
)
def test_own_pages(origin: str, host: str) -> None:
    """By default a page may connect to the host it came from, whatever its scheme, case and way to write the port."""
    assert OriginRule().refusal(origin, host) is None


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "shop.example"),
        ("https://shop.example.evil.example", "shop.example"),
        ("https://evil.example/shop.example", "shop.example"),
        ("https://shop.example@evil.example", "shop.example"),
        ("https://evilshop.example", "shop.example"),
        ("https://sub.shop.example", "shop.example"),
        ("https://shop.example:8443", "shop.example"),
        ("http://shop.example", "shop.example:443"),
        ("http://localhost:3000", "localhost:8000"),
        ("http://localhost:3000", "127.0.0.1:8000"),
        ("http://localhost.evil.example:8000", "127.0.0.1:8000"),
        ("http://127.0.0.1.evil.example", "127.0.0.1"),
        ("http://0.0.0.0:8000", "127.0.0.1:8000"),
        ("file://", "shop.example"),
        ("file://", ""),
        ("app://.", "localhost:8000"),
        ("http://[::1]", "[::2]"),
        ("http://[::1::]", "[::1::]"),
        ("http://shop.example:99999", "shop.example:99999"),
        ("null", "shop.example"),
        ("null", "null"),
        ("", "shop.example"),
        ("", ""),
        ("https://", ""),
        ("shop.example", "shop.example"),
        ("https://shop.example https://evil.example", "shop.example"),
        ("https://shop.example\n", "shop.example"),
        ("https://shop.example", None),
        ("https://shop.example", ""),
    ],
)
def test_pages_of_elsewhere(origin: str, host: str | None) -> None:
    """By default a page of any other host or port, without an origin, or with no sensible one, stays out."""
    assert OriginRule().refusal(origin, host) is not None


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        ("file://", "file://"),
        ("app://.", "app://."),
        ("https://shop.example", "https://shop.example"),
        ("https://shop.example", "https://shop.example:443"),
        ("https://shop.example:443", "https://shop.example"),
        ("HTTPS://Shop.Example", "https://shop.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[0:0::1]:3000", "http://[::1]:3000"),
        ("https://*.shop.example", "https://eu.shop.example"),
        ("https://*.shop.example:8443", "https://eu.shop.example:8443"),
        ("https://shop.example", "https://shop.example."),
        ("capacitor://localhost", "capacitor://localhost"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ("null", "null"),
    ],
)
def test_allowed(entry: str, origin: str) -> None:
    """An entry lets its origin in, and no Host header plays a part."""
    assert OriginRule([entry]).refusal(origin, None) is None


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        ("https://shop.example", "http://shop.example"),
        ("https://shop.example", "https://shop.example:8443"),
        ("https://shop.example", "https://eu.shop.example"),
        ("https://*.shop.example", "https://shop.example"),
        ("https://*.shop.example", "https://a.eu.shop.example"),
        ("https://*.shop.example", "https://.shop.example"),
        ("https://*.shop.example", "https://evilshop.example"),
        ("https://*.shop.example", "http://eu.shop.example"),
        ("https://*.shop.example", "https://*.shop.example"),
        ("https://shop.example", "null"),
        ("null", "https://shop.example"),
    ],
)
def test_not_allowed(entry: str, origin: str) -> None:
    """An entry lets in its scheme, host and port, a wildcard exactly one label more, and nothing else."""
    assert OriginRule([entry]).refusal(origin, "host.example") is not None


def test_list_replaces_the_own_host() -> None:
    """A list is the whole truth: the own host is let in only where it is named (which also stops DNS rebinding)."""
    assert OriginRule(["https://shop.example"]).refusal("https://evil.example", "evil.example") is not None


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "nonsense"])
def test_star_lets_all_in(origin: str) -> None:
    """`*` lets in every page."""
    assert OriginRule("*").refusal(origin, "shop.example") is None


def test_empty_list_lets_no_browser_in() -> None:
    """An empty list lets in no page at all."""
    assert OriginRule([]).refusal("https://shop.example", "shop.example") is not None


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        ("https://shop.example", "allowed_origins is None, \"*\" or a list of origins, not 'https://shop.example'"),
        (7, 'allowed_origins is None, "*" or a list of origins, not 7'),
        ([7], "allowed_origins holds 7: an origin is a str"),
        (["*"], "allowed_origins holds '*': to allow every origin, say allowed_origins=\"*\""),
        (["shop.example"], "holds 'shop.example': it lacks the scheme: https://shop.example"),
        (["https://shop.example/"], "an origin ends behind host and port, without a slash: https://shop.example"),
        (["https://shop.example/app"], "without a slash"),
        (["https://me@shop.example"], "ends behind host and port"),
        (["https://bücher.example"], "in its ASCII form: https://xn--..."),
        (["https://eu.*.example"], "a wildcard stands only for the first label: https://*.shop.example"),
        (["https://*"], "a wildcard stands only for the first label"),
        (["https://*shop.example"], "a wildcard stands only for the first label"),
        (["https://"], "it must be scheme://host or scheme://host:port"),
        (["https://*."], "it must be scheme://host or scheme://host:port"),
        (["https://shop.example:"], "it must be scheme://host or scheme://host:port"),
        (["https://shop.example:http"], "it must be scheme://host or scheme://host:port"),
        (["https://shop.example:65536"], "it must be scheme://host or scheme://host:port"),
        (["https://[::1"], "it must be scheme://host or scheme://host:port"),
        (["https://shop.example https://b.example"], "without a slash"),
        ([""], "holds '': it lacks the scheme"),
    ],
)
def test_wrong_configuration(allowed: Any, words: str) -> None:
    """What is no origin is refused at construction, in words that say what to write."""
    with pytest.raises(ConfigurationError) as raised:
        OriginRule(allowed)
    assert words in str(raised.value)


def test_refusal_names_origin_host_and_remedy() -> None:
    """The developer reads which page was refused, what it was compared with, and what to write."""
    assert OriginRule().refusal("http://localhost:3000", "localhost:8000") == (
        "pages of http://localhost:3000 may not connect here: the host they connect to is localhost:8000 "
        "(the Host header; a proxy in front that replaces it must pass it on); "
        'if it is yours, allow it: Backplane(allowed_origins=["http://localhost:3000"])'
    )


def test_refusal_under_a_list() -> None:
    """Under a list the host plays no part, and is not named."""
    assert OriginRule(["https://shop.example"]).refusal("null", "shop.example") == (
        'pages of null may not connect here; if it is yours, allow it: Backplane(allowed_origins=["null"])'
    )


def test_refusal_of_nonsense_offers_no_remedy() -> None:
    """What is no origin cannot be allowed, and its markup and line breaks are not repeated."""
    assert OriginRule([]).refusal("<script>\r\n\x1b[31m", None) == "pages of ?script????[31m may not connect here"
    assert OriginRule([]).refusal("", None) == "pages of (empty) may not connect here"


@given(origin=st.text(max_size=300), host=st.none() | st.text(max_size=300))
def test_refusal_is_safe_to_show(origin: str, host: str | None) -> None:
    """Whatever the client sends, the words are short, one line, and hold no markup."""
    words = OriginRule().refusal(origin, host)
    assert words is not None
    assert len(words) < 600
    assert words.isascii()
    assert words.isprintable()
    assert not set(words) & set("<>&\\`$'")


@given(label=st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True), port=st.none() | st.integers(1, 65535))
def test_own_page_always_comes_in(label: str, port: int | None) -> None:
    """Every page whose authority is the Host header comes in by default."""
    authority = f"{label}.example" + (f":{port}" if port else "")
    assert OriginRule().refusal(f"https://{authority}", authority) is None


# --- allowed_hosts ----------------------------------------------------------------------------------------------------

HOSTS = ["Shop.example", "*.shop.example", "localhost", "[::1]", "10.0.0.7"]


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://shop.example", "shop.example"),
        ("http://shop.example:8000", "shop.example:8000"),
        ("https://eu.shop.example", "eu.shop.example"),
        ("http://127.0.0.1:8000", "localhost:8000"),
        ("http://[0:0:0:0:0:0:0:1]", "[::1]"),
        ("http://10.0.0.7", "10.0.0.7"),
    ],
)
def test_own_pages_of_a_known_host(origin: str, host: str) -> None:
    """Pages of a host that is listed may connect to it, on any port."""
    assert OriginRule(None, HOSTS).refusal(origin, host) is None


@pytest.mark.parametrize(
    "name", ["evil.example", "a.b.shop.example", "shop.example.evil.example", "notshop.example", "10.0.0.8", "example"]
)
def test_dns_rebinding(name: str) -> None:
    """A page whose name somebody else has made lead to this server may not connect where the hosts are listed."""
    assert OriginRule().refusal(f"http://{name}", name) is None
    assert OriginRule(None, HOSTS).refusal(f"http://{name}", name) == (
        f"pages of http://{name} may not connect here: this host is none of allowed_hosts"
    )


def test_another_site_beside_known_hosts() -> None:
    """Two hosts that are listed are two sites all the same."""
    assert OriginRule(None, HOSTS).refusal("https://eu.shop.example", "shop.example") is not None


@pytest.mark.parametrize("hosts", ["shop.example", ["https://shop.example"], ["shop.example:80"], [""], ["*"], [7]])
def test_wrong_hosts(hosts: Any) -> None:
    """What is no host name is refused, with what one looks like."""
    with pytest.raises(ConfigurationError, match=r"^allowed_hosts "):
        OriginRule(None, hosts)


def test_hosts_beside_origins() -> None:
    """Hosts beside a list of origins would do nothing, so they are refused."""
    with pytest.raises(ConfigurationError, match="no effect beside allowed_origins"):
        OriginRule(["https://shop.example"], ["shop.example"])
