"""Secrets of a login in the words of a server: what a proxy or a server repeats of them stands in no error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from backplane.adapters.shared.error_chain import error_chain
from backplane.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["hiding"]

_HIDDEN: Final = "***"


@contextmanager
def hiding(*secrets: str | None, shown: object) -> Generator[None]:
    """Raise a `BrokerError` of the block without the secrets in it, and then without its cause, which holds them too.

    Args:
        *secrets: Passwords and tokens of the login.
        shown: What errors show in any case, such as the URL: what is a part of it, as `guest` of a new RabbitMQ, is no
            secret.
    """
    try:
        yield
    except BrokerError as error:
        hidden = [secret for secret in secrets if secret and secret not in str(shown)]
        texts = [str(each) for each in error_chain(error)]
        if not any(secret in text for secret in hidden for text in texts):
            raise
        for secret in sorted(hidden, key=len, reverse=True):
            error.reason = error.reason.replace(secret, _HIDDEN)
        error.args = (f"{error.adapter}: {error.reason}" if error.adapter else error.reason,)
        raise error from None
