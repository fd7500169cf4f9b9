"""How an adapter makes the TLS settings of a client from its options."""

from __future__ import annotations

import ssl

from backplane.errors import BrokerError

__all__ = ["client_context"]


def client_context(ca_certs: str | None, certfile: str | None, keyfile: str | None, *, adapter: str) -> ssl.SSLContext:
    """Return settings that verify certificate and host name; the files are read now, for certificates are renewed.

    Args:
        ca_certs: File of the authorities to trust. Defaults to the system's.
        certfile: File of the client's certificate.
        keyfile: File of its key. Defaults to the certificate's file.
        adapter: Whose options these are.

    Raises:
        BrokerError: A file cannot be read, is none, or is a key with a passphrase; another try does not help.
    """
    try:
        context = ssl.create_default_context(cafile=ca_certs)
        if certfile is not None:
            # An answer, for OpenSSL would ask for a passphrase on the terminal and wait.
            context.load_cert_chain(certfile, keyfile, password="")
    except OSError as error:
        files = ", ".join(filter(None, (ca_certs, certfile, keyfile)))
        raise BrokerError(f"the files of TLS cannot be used ({files}): {error}", adapter=adapter) from error
    return context
