"""`backplane.adapters.shared.hidden_secrets`: secrets of a login in the words of a server."""

from __future__ import annotations

import traceback

import pytest

from backplane.adapters.shared.hidden_secrets import hiding
from backplane.errors import BrokerError, BrokerUnavailableError


def raised(error: BrokerError, cause: Exception | None, *secrets: str | None, shown: object = "") -> BrokerError:
    """Return what is raised in place of an error."""
    with pytest.raises(BrokerError) as found, hiding(*secrets, shown=shown):
        raise error from cause
    return found.value


def test_each_secret_is_hidden() -> None:
    """Longer ones first: one can be a part of another; the error keeps its type and its attributes."""
    error = BrokerUnavailableError("no to hunter22 and hunter2", adapter="nats")
    found = raised(error, ValueError("hunter2"), "hunter2", "hunter22", None, "")
    assert found is error
    assert (found.reason, str(found), found.retriable) == ("no to *** and ***", "nats: no to *** and ***", True)
    assert "hunter2" not in "".join(traceback.format_exception(found))


def test_a_cause_that_alone_holds_a_secret() -> None:
    """It is left out."""
    found = raised(BrokerError("no"), ValueError("hunter2"), "hunter2")
    assert str(found) == "no"
    assert "ValueError" not in "".join(traceback.format_exception(found))


@pytest.mark.parametrize("shown", ["amqp://guest:***@host", ("amqp://host", "guest")])
def test_what_is_shown_in_any_case_is_no_secret(shown: object) -> None:
    """A password that is the user's name stands in each error; the cause stays."""
    cause = ValueError("guest")
    found = raised(BrokerError("no to guest"), cause, "guest", shown=shown)
    assert (str(found), found.__cause__) == ("no to guest", cause)


def test_other_errors_pass() -> None:
    """A bug keeps its traceback."""
    with pytest.raises(KeyError), hiding("hunter2", shown=""):
        raise KeyError("hunter2")
