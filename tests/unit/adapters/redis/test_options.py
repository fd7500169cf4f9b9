"""`backplane.adapters.redis.options`: options that contradict the URL or each other."""

from __future__ import annotations

import pytest

from backplane.broker.registry import broadcaster_from_url
from backplane.errors import ConfigurationError


@pytest.mark.parametrize("scheme", ["redis", "valkey", "unix", "redis+sentinel"])
@pytest.mark.parametrize("option", ["ssl_ca_certs=/ca.pem", "ssl_check_hostname=true", "ssl_cert_reqs=required"])
def test_tls_option_without_tls_is_refused(scheme: str, option: str) -> None:
    """A URL with a TLS option and a scheme without TLS is refused, so that no connection is unencrypted by mistake."""
    address = "/run/redis.sock" if scheme == "unix" else "localhost/mymaster" if "+" in scheme else "localhost"
    with pytest.raises(ConfigurationError, match="speaks no TLS: use rediss://"):
        broadcaster_from_url(f"{scheme}://{address}?{option}")


@pytest.mark.parametrize(
    "url", ["rediss://h?ssl_keyfile=k", "redis://u:p@h?credentials=a:b", "redis://h?credentials=a"]
)
def test_contradicting_options_are_refused(url: str) -> None:
    """A key without its certificate, two kinds of credentials, and a callable without a module are refused."""
    with pytest.raises(ConfigurationError):
        broadcaster_from_url(url)


@pytest.mark.parametrize("url", ["redis://localhost/3", "redis://localhost?db=3", "unix:///run/redis.sock?db=3"])
def test_database_number_is_a_warning(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A database separates no channels: a warning names the option that does."""
    broadcaster_from_url(url)
    (record,) = caplog.records
    assert "names database 3, and Redis pub/sub has no databases" in record.getMessage()
    assert "?prefix=" in record.getMessage()


@pytest.mark.parametrize("url", ["redis://localhost", "redis://localhost/0", "redis://localhost/?db=0"])
def test_first_database_is_no_warning(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The number that every URL has by default causes no warning."""
    broadcaster_from_url(url)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://one,two", "leads to one server"),
        ("unix://run/redis.sock", "begins with a slash"),
        ("unix:///", "begins with a slash"),
    ],
)
def test_malformed_address_is_refused(url: str, message: str) -> None:
    """Several hosts, and a socket path without a leading slash, are refused before anything is opened."""
    with pytest.raises(ConfigurationError, match=message):
        broadcaster_from_url(url)
