"""`backplane.adapters.shared.tls`: the TLS settings of every adapter, from the files that its options name."""

from __future__ import annotations

import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from backplane.adapters.shared.tls import client_context
from backplane.errors import BrokerError
from tests.brokers.certificate import self_signed_certificate

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_verified(tmp_path: Path) -> None:
    """A certificate and its name are verified, and only the given authorities are trusted."""
    certificate = self_signed_certificate(tmp_path)
    context = client_context(str(certificate), str(certificate), str(tmp_path / "key.pem"), adapter="redis")
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize("wrong", ["missing", "no certificate", "no key", "key with a passphrase"])
def test_file_that_cannot_be_used(tmp_path: Path, wrong: str) -> None:
    """A file that is missing, is none, or wants a passphrase is named at once, and not tried again."""
    certificate = self_signed_certificate(tmp_path)
    file = tmp_path / "wrong.pem"
    if wrong == "key with a passphrase":
        key = tmp_path / "key.pem"
        command = ["openssl", "pkcs8", "-topk8", "-passout", "pass:x", "-in", str(key), "-out", str(file)]
        subprocess.run(command, check=True, capture_output=True)
    elif wrong != "missing":
        file.write_text("nothing of use")
    authorities, keys = (None, str(file)) if "key" in wrong else (str(file), None)
    with pytest.raises(BrokerError, match=r"wrong\.pem") as raised:
        client_context(authorities, str(certificate), keys, adapter="nats")
    assert not raised.value.retriable
