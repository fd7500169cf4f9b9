"""Pub/sub backplane for FastAPI and Starlette WebSockets: publish anywhere, reach every socket of every worker."""

from backplane.broker.supervisor import StateChange
from backplane.close_codes import CloseCode
from backplane.connection.connection import Connection
from backplane.connection.limits import Limits
from backplane.connection.policy import Client, SlowConsumer
from backplane.core import Backplane
from backplane.errors import (
    AuthorizeTimeoutError,
    BackplaneError,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
    ConfigurationError,
    InvalidChannelError,
    InvalidDataError,
    InvalidMessageError,
    JoinRefusedError,
    LifecycleError,
    MissingDependencyError,
    NotStartedError,
    OriginRefusedError,
    PayloadTooLargeError,
    PermissionExpiredError,
    PublishError,
    PublishOutcomeUnknownError,
    RefusedError,
    SlowConsumerError,
    SubscribeError,
    TooManyChannelsError,
    TooManyConnectionsError,
    WrongLoopError,
)
from backplane.fanout.subscription import Subscription
from backplane.message import Gap, Message, Position
from backplane.settings import Settings
from backplane.worker.health import Health

__all__ = [
    "AuthorizeTimeoutError",
    "Backplane",
    "BackplaneError",
    "BrokerAuthenticationError",
    "BrokerError",
    "BrokerUnavailableError",
    "Client",
    "CloseCode",
    "ClosedError",
    "ConfigurationError",
    "Connection",
    "Gap",
    "Health",
    "InvalidChannelError",
    "InvalidDataError",
    "InvalidMessageError",
    "JoinRefusedError",
    "LifecycleError",
    "Limits",
    "Message",
    "MissingDependencyError",
    "NotStartedError",
    "OriginRefusedError",
    "PayloadTooLargeError",
    "PermissionExpiredError",
    "Position",
    "PublishError",
    "PublishOutcomeUnknownError",
    "RefusedError",
    "Settings",
    "SlowConsumer",
    "SlowConsumerError",
    "StateChange",
    "SubscribeError",
    "Subscription",
    "TooManyChannelsError",
    "TooManyConnectionsError",
    "WrongLoopError",
]

__version__: str = "0.1.0"
