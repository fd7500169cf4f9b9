"""Signatures of what workers send each other, for brokers to which others may publish too.

HMAC-SHA-256 (RFC 2104), cut to 16 bytes (section 5), over the channel, a line feed and the text. A signature is valid
on its channel alone. It is no encryption: others can read what is sent.
"""

from __future__ import annotations

import hmac
from typing import Final

from backplane.errors import ConfigurationError

__all__ = ["Signer", "secret_bytes"]

_MAC_BYTES: Final = 16
_MAC_DIGITS: Final = 2 * _MAC_BYTES
_MIN_SECRET_BYTES: Final = 16


def secret_bytes(secret: object) -> bytes | None:
    """Return the secret of the option `control_secret`; `None` without one.

    Raises:
        ConfigurationError: It is neither text nor bytes, or shorter than 16 bytes.
    """
    if secret is None:
        return None
    encoded = secret.encode(errors="surrogateescape") if isinstance(secret, str) else secret
    if not isinstance(encoded, bytes) or len(encoded) < _MIN_SECRET_BYTES:
        raise ConfigurationError(
            f"control_secret must be a text or bytes of at least {_MIN_SECRET_BYTES} bytes, the same in every process: "
            "`python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes one"
        )
    return encoded


class Signer:
    """Signs texts, and checks those that were received.

    Args:
        secret: The secret of all workers.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.new(secret, digestmod="sha256")

    def __repr__(self) -> str:
        return "Signer(***)"

    def sign(self, channel: str, text: str) -> str:
        """Return `text` with its signature in front."""
        return self._signature(channel, text) + text

    def checked(self, channel: str, signed: str) -> str | None:
        """Return the text of `signed`; `None` where its signature is missing or wrong."""
        signature, text = signed[:_MAC_DIGITS], signed[_MAC_DIGITS:]
        expected = self._signature(channel, text)
        # Of text with other characters than ASCII `compare_digest` takes bytes alone.
        return text if hmac.compare_digest(signature.encode(errors="replace"), expected.encode()) else None

    def _signature(self, channel: str, text: str) -> str:
        mac = self._key.copy()
        mac.update(f"{channel}\n{text}".encode(errors="surrogatepass"))
        return mac.hexdigest()[:_MAC_DIGITS]
