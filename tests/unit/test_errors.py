"""`backplane.errors`: the tree, the attributes and the messages."""

import pickle

import pytest

import backplane
from backplane import errors
from backplane.errors import (
    BackplaneError,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    PayloadTooLargeError,
    PublishError,
    PublishOutcomeUnknownError,
    SubscribeError,
    TooManyPresentError,
)

TREE = {
    "BackplaneError": (Exception,),
    "ConfigurationError": (BackplaneError, ValueError),
    "MissingDependencyError": (errors.ConfigurationError, ImportError),
    "LifecycleError": (BackplaneError, RuntimeError),
    "NotStartedError": (errors.LifecycleError,),
    "WrongLoopError": (errors.LifecycleError,),
    "ClosedError": (errors.LifecycleError,),
    "InvalidChannelError": (BackplaneError, ValueError),
    "InvalidDataError": (BackplaneError, TypeError),
    "PayloadTooLargeError": (BackplaneError, ValueError),
    "InvalidMessageError": (BackplaneError,),
    "InvalidPositionError": (BackplaneError, ValueError),
    "SlowConsumerError": (BackplaneError,),
    "AuthorizeTimeoutError": (BackplaneError,),
    "RefusedError": (BackplaneError,),
    "OriginRefusedError": (errors.RefusedError,),
    "TooManyConnectionsError": (errors.RefusedError,),
    "TooManyPresentError": (BackplaneError,),
    "TooManyChannelsError": (errors.RefusedError,),
    "JoinRefusedError": (errors.RefusedError,),
    "PermissionExpiredError": (errors.RefusedError,),
    "TokenExpiredError": (errors.PermissionExpiredError,),
    "InvalidTokenError": (errors.RefusedError,),
    "TokenCheckUnavailableError": (BackplaneError,),
    "BrokerError": (BackplaneError,),
    "BrokerUnavailableError": (BrokerError,),
    "BrokerAuthenticationError": (BrokerError,),
    "PublishError": (BrokerError,),
    "PublishOutcomeUnknownError": (PublishError,),
    "SubscribeError": (BrokerError,),
}


def test_tree() -> None:
    """Every error has its place in the tree, and the tree has no other."""
    assert {name: getattr(errors, name).__bases__ for name in errors.__all__} == TREE


def test_every_error_is_public() -> None:
    """Every error can be imported from `backplane` itself."""
    assert [name for name in errors.__all__ if getattr(backplane, name, None) is not getattr(errors, name)] == []


def test_payload_too_large_names_size_and_limit() -> None:
    """A message that is too large is reported with its size, the limit and what to do."""
    error = PayloadTooLargeError(1_048_577, 1_048_576)
    assert (error.size_bytes, error.limit_bytes) == (1_048_577, 1_048_576)
    assert str(error) == (
        "the message takes 1,048,577 bytes on the broker and the limit is 1,048,576: "
        "publish a reference to it instead, or raise the adapter's limit if it has an option for that"
    )


def test_too_many_present_names_their_number() -> None:
    """A view without users is reported with how many connections there are and what to do, also by another process."""
    error = TooManyPresentError(12_345)
    assert str(error) == (
        "the channel has 12,345 connections, and is over the max_entries of its Presence rule: "
        "its users are not known, only `connections` is"
    )
    restored = pickle.loads(pickle.dumps(error))
    assert (restored.connections, str(restored)) == (12_345, str(error))


def test_broker_error_names_its_adapter() -> None:
    """A broker's error starts with the name of the adapter, and has it and the rest as attributes."""
    error = BrokerError("it broke", adapter="redis")
    assert (str(error), error.adapter, error.reason) == ("redis: it broke", "redis", "it broke")


def test_broker_error_without_adapter() -> None:
    """An error of the core itself names no adapter."""
    error = BrokerError("it broke")
    assert (str(error), error.adapter, error.reason) == ("it broke", "", "it broke")


@pytest.mark.parametrize(
    ("error_class", "retriable"),
    [
        (BrokerError, False),
        (BrokerUnavailableError, True),
        (BrokerAuthenticationError, False),
        (PublishError, False),
        (PublishOutcomeUnknownError, False),
    ],
)
def test_retriable_by_default(error_class: type[BrokerError], retriable: bool) -> None:
    """Of the errors of a broker, only that of an unreachable one is retriable by default."""
    assert error_class("it broke").retriable is retriable


@pytest.mark.parametrize("retriable", [True, False])
def test_adapter_decides_what_is_retriable(retriable: bool) -> None:
    """An adapter can set for any error whether another try can help, and sets it for that error alone."""
    assert BrokerUnavailableError("it broke", retriable=retriable).retriable is retriable
    assert BrokerUnavailableError.retriable is True


def test_subscribe_error_names_what_was_refused() -> None:
    """A refusal names each channel with the broker's reason."""
    error = SubscribeError({"a": "no", "b": "never"}, adapter="nats")
    assert str(error) == "nats: subscription refused: 'a': no; 'b': never"
    assert error.refused == {"a": "no", "b": "never"}
    assert error.retriable is False


def test_subscribe_error_shows_five_channels_and_keeps_all() -> None:
    """A refusal of very many channels stays readable, and its attribute holds them all."""
    error = SubscribeError({str(number): "no" for number in range(7)})
    assert str(error) == ("subscription refused: '0': no; '1': no; '2': no; '3': no; '4': no (and 2 more)")
    assert len(error.refused) == 7


def test_subscribe_error_keeps_a_copy() -> None:
    """What an adapter does with its mapping afterwards does not change the error."""
    refused = {"a": "no"}
    error = SubscribeError(refused)
    refused.clear()
    assert error.refused == {"a": "no"}


@pytest.mark.parametrize(
    "error",
    [
        BackplaneError("it broke"),
        BrokerUnavailableError("it broke", adapter="redis"),
        PublishError("it broke", adapter="redis", retriable=True),
        PayloadTooLargeError(2, 1),
        SubscribeError({"a": "no"}, adapter="redis"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_between_processes(error: BackplaneError) -> None:
    """An error survives pickling whole: task queues and process pools hand errors on that way."""
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_subscribe_error_separates_refused_from_unconfirmed() -> None:
    """A channel without a final answer is named apart from a refused one, and the error survives a pickle."""
    error = SubscribeError({"a": "no"}, unconfirmed={"b": "BUSY"}, adapter="redis")
    assert str(error) == "redis: subscription refused: 'a': no; not confirmed yet: 'b': BUSY"
    assert (error.retriable, SubscribeError({}, unconfirmed={"b": "BUSY"}).retriable) == (False, True)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.refused, copy.unconfirmed, copy.adapter) == (error.refused, error.unconfirmed, "redis")
