"""A certificate for a broker of the tests."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from tests.brokers.broker import BrokerMissingError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["self_signed_certificate"]


def self_signed_certificate(folder: Path, *, names: str = "DNS:localhost,IP:127.0.0.1") -> Path:
    """Write a fresh key and its certificate for `names` into `folder`; return the certificate."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise BrokerMissingError("no openssl, to make a certificate for a broker")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", f"subjectAltName={names}"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, "req", *kind, *subject, *files], check=True, capture_output=True)
    return certificate
