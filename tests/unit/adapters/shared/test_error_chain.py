"""`backplane.adapters.shared.error_chain`: the error that explains a failed connection."""

from __future__ import annotations

import ssl
from itertools import pairwise

import pytest

from backplane.adapters.shared.error_chain import certificate_error, error_chain, reason_of
from backplane.errors import BrokerUnavailableError


def raised(*errors: BaseException) -> BaseException:
    """Return the last of `errors`, each raised from the one before it."""
    for cause, error in pairwise(errors):
        error.__cause__ = cause
    return errors[-1]


def test_chain_follows_cause_and_context() -> None:
    """An error is followed by what it was raised from, and by the error during whose handling it was raised."""
    first, second, third = OSError("first"), ValueError("second"), RuntimeError("third")
    second.__context__ = first
    assert list(error_chain(raised(second, third))) == [third, second, first]


@pytest.mark.parametrize("outer", [[], [ConnectionError("of a client library")], [OSError(), ConnectionError()]])
def test_refused_certificate_is_found_at_any_depth(outer: list[Exception]) -> None:
    """A client library may raise an error of its own from the refusal of a certificate."""
    refusal = ssl.SSLCertVerificationError("self-signed")
    assert certificate_error(raised(refusal, *outer)) is refusal


def test_other_error_of_tls_is_no_refused_certificate() -> None:
    """Where the port speaks no TLS, the certificate is not to blame."""
    assert certificate_error(raised(ssl.SSLError("wrong version number"), ConnectionError())) is None


def test_reason_leaves_the_adapter_out() -> None:
    """The name of the adapter, which the error that repeats the reason has too, is removed; the rest stays."""
    assert reason_of(BrokerUnavailableError("redis: is away", adapter="redis")) == "redis: is away"
    assert reason_of(OSError("redis: is away")) == "redis: is away"
