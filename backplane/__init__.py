"""Pub/sub backplane for FastAPI and Starlette WebSockets: publish anywhere, reach every socket of every worker."""

from backplane.connection import CloseCode, Connection
from backplane.core import Backplane
from backplane.errors import (
    BackplaneError,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
    ConfigurationError,
    InvalidChannelError,
    InvalidDataError,
    LifecycleError,
    MissingDependencyError,
    NotStartedError,
    PayloadTooLargeError,
    PublishError,
    PublishOutcomeUnknownError,
    SlowConsumerError,
    SubscribeError,
)
from backplane.message import Gap, Message, Position
from backplane.settings import Settings
from backplane.subscription import Subscription

__all__ = [
    "Backplane",
    "BackplaneError",
    "BrokerAuthenticationError",
    "BrokerError",
    "BrokerUnavailableError",
    "CloseCode",
    "ClosedError",
    "ConfigurationError",
    "Connection",
    "Gap",
    "InvalidChannelError",
    "InvalidDataError",
    "LifecycleError",
    "Message",
    "MissingDependencyError",
    "NotStartedError",
    "PayloadTooLargeError",
    "Position",
    "PublishError",
    "PublishOutcomeUnknownError",
    "Settings",
    "SlowConsumerError",
    "SubscribeError",
    "Subscription",
]
