"""`backplane.adapters.nats.broadcaster`: the URLs that it accepts, and how it shows them."""

from __future__ import annotations

import pytest

from backplane import Backplane, ConfigurationError


def test_a_token_is_masked() -> None:
    """A user name without a password is a token, and is masked as a password is."""
    backplane = Backplane("nats://s3cr3t@localhost")
    assert "s3cr3t" not in repr(backplane)
    assert backplane.url == "nats://:***@localhost"


@pytest.mark.parametrize("url", ["ws://localhost", "wss://localhost"])
def test_websockets_of_nats_are_refused(url: str) -> None:
    """NATS over WebSockets is not supported, and the error names the schemes that are."""
    with pytest.raises(ConfigurationError, match=r"unknown scheme 'wss?'.*nats.*tls"):
        Backplane(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nats://localhost:notaport", "host:port"),
        ("nats://one,two:99999", "host:port"),
        ("nats://localhost/shop", "no path"),
        ("nats://one,tls://two", "nats://one:4222,two:4222"),
        ("nats://alice:x@one,nats://bob:y@two", "share one user"),
        ("nats://one,nats://bob:y@two", "share one user"),
        ("nats://one?tls_keyfile=key.pem", "tls_certfile"),
        ("nats://localhost?prefix=shop", "ended by a dot"),
        ("nats://localhost?prefix=>.", "ended by a dot"),
    ],
)
def test_a_malformed_url_is_refused(url: str, message: str) -> None:
    """A malformed port, a path, and a prefix that is not made of tokens are refused before anything is opened."""
    with pytest.raises(ConfigurationError, match=message):
        Backplane(url)
