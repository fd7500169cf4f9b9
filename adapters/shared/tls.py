"""The TLS settings of a client, from the options of its adapter."""

from __future__ import annotations

import ssl

from backplane.errors import BrokerError

__all__ = ["client_context"]


def client_context(ca_certs: str | None, certfile: str | None, keyfile: str | None, *, adapter: str) -> ssl.SSLContext:
    """Return settings that verify certificate and host name. The files are read at each call: certificates are renewed.

    Args:
        ca_certs: File of the authorities to trust. Defaults to the system's.
        certfile: File of the client's certificate.
        keyfile: File of its key. Defaults to the certificate's file.
        adapter: The adapter whose options these are.

    Raises:
        BrokerError: A file cannot be read or is malformed, or the key has a passphrase; another try does not help.
    """
    try:
        context = ssl.create_default_context(cafile=ca_certs)
        if certfile is not None:
            # Without a password OpenSSL would ask for the passphrase of a key on the terminal, and wait.
            context.load_cert_chain(certfile, keyfile, password="")
    except OSError as error:
        files = ", ".join(filter(None, (ca_certs, certfile, keyfile)))
        raise BrokerError(f"the files of TLS cannot be used ({files}): {error}", adapter=adapter) from error
    return context
