"""`backplane.cluster.signatures`: what is signed by the secret of all workers, and what is not."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from backplane import ConfigurationError
from backplane.cluster.signatures import Signer, secret_bytes

SECRET = b"s" * 32
TEXT = '["beat", "é"]'


def test_a_signature_is_valid_for_its_channel_and_text() -> None:
    """What a worker signs, another one with the same secret takes, text by text."""
    signed = Signer(SECRET).sign("a", TEXT)
    assert Signer(SECRET).checked("a", signed) == TEXT
    assert Signer(SECRET).checked("a", Signer(SECRET).sign("a", "")) == ""


def test_the_format_is_stated() -> None:
    """HMAC-SHA-256 over channel, line feed and text, cut to 16 bytes, as hexadecimal digits in front."""
    expected = hmac.new(SECRET, f"a\n{TEXT}".encode(), hashlib.sha256).hexdigest()[:32]
    assert Signer(SECRET).sign("a", TEXT) == expected + TEXT


SIGNED = Signer(SECRET).sign("a", TEXT)


@pytest.mark.parametrize(
    "signed",
    [
        pytest.param(TEXT, id="unsigned"),
        pytest.param("", id="empty"),
        pytest.param(SIGNED[:31], id="truncated"),
        pytest.param(SIGNED[:32], id="without its text"),
        pytest.param(SIGNED[:-1], id="cut"),
        pytest.param(SIGNED + " ", id="longer"),
        pytest.param(SIGNED[:32].upper() + TEXT, id="upper case"),
        pytest.param("é" * 32 + TEXT, id="no ASCII"),
        pytest.param("\ud800" * 32 + TEXT, id="surrogates"),
        pytest.param("0" * 32 + "\ud800", id="a surrogate in the text"),
        pytest.param(Signer(b"t" * 32).sign("a", TEXT), id="another secret"),
        pytest.param(Signer(SECRET).sign("b", TEXT), id="another channel"),
        pytest.param(Signer(SECRET).sign("a\n" + TEXT[:1], TEXT[1:]), id="another border"),
    ],
)
def test_what_is_not_signed(signed: str) -> None:
    """Each of these is refused, without an error."""
    assert Signer(SECRET).checked("a", signed) is None


def test_a_secret_is_shown_nowhere() -> None:
    """Neither a signer nor an error shows it."""
    assert repr(Signer(SECRET)) == "Signer(***)"
    with pytest.raises(ConfigurationError) as refused:
        secret_bytes("short-secret")
    assert "short-secret" not in str(refused.value)


@pytest.mark.parametrize("secret", ["", "s" * 15, b"s" * 15, 1234567890123456789, ["s" * 20], True])
def test_secrets_that_cannot_be_used(secret: object) -> None:
    """A secret of another type, or of less than 16 bytes, is refused at the start."""
    with pytest.raises(ConfigurationError, match="at least 16 bytes"):
        secret_bytes(secret)


def test_secrets() -> None:
    """Text counts in bytes of UTF-8; text and bytes of the same content are the same secret."""
    assert secret_bytes(None) is None
    assert secret_bytes("s" * 16) == secret_bytes(b"s" * 16)
    assert secret_bytes("é" * 8) == ("é" * 8).encode()
