"""Pub/sub backplane for FastAPI and Starlette WebSockets: publish anywhere, reach every socket of every worker."""

from backplane.broker.link_state import LinkState, StateChange
from backplane.close_codes import CloseCode
from backplane.cluster_types import Answers, Worker
from backplane.connect_options import ConnectOptions
from backplane.connection.callback_handler import OnConnection, OnMessage
from backplane.connection.connection import Connection
from backplane.connection.envelope import Envelope
from backplane.connection.limits import Limits
from backplane.connection.policy import Authorize, Client, OnGap, OnSlow, SlowConsumer
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
    InvalidPositionError,
    InvalidTokenError,
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
    TokenCheckUnavailableError,
    TokenExpiredError,
    TooManyChannelsError,
    TooManyConnectionsError,
    TooManyPresentError,
    WrongLoopError,
)
from backplane.explain.evidence import ClientEvidence, EndedClient, RefusedJoin, WorkerEvidence
from backplane.explain.explanation import Explanation, Finding
from backplane.exporters.metrics_routes import MetricsEndpoint, metrics_routes
from backplane.exporters.opentelemetry import instrument_metrics
from backplane.exporters.prometheus import BackplaneCollector
from backplane.fanout.backlog import Backlog, FullPolicy
from backplane.fanout.subscription import Subscription
from backplane.history_rules import History
from backplane.message import Gap, HistoryPage, Joined, Message, Position, Receipt
from backplane.presence.watch import PresenceWatch
from backplane.presence_types import (
    Presence,
    PresenceChange,
    PresenceSnapshot,
    PresenceView,
    PresentUser,
    Who,
)
from backplane.settings import Settings
from backplane.statistics import Statistics
from backplane.stats.lists import ChannelList, ChannelRow, ConnectionList, ConnectionRow
from backplane.stats.overview import ChannelOverview, Overview, Problem, WorkerOverview
from backplane.stats.overviews import Overviews
from backplane.stats.queries import ChannelOrder, ConnectionOrder
from backplane.typed_channel import TypedChannel
from backplane.web.origin import AllowedOrigins
from backplane.worker.health import Health

__all__ = [
    "AllowedOrigins",
    "Answers",
    "Authorize",
    "AuthorizeTimeoutError",
    "Backlog",
    "Backplane",
    "BackplaneCollector",
    "BackplaneError",
    "BrokerAuthenticationError",
    "BrokerError",
    "BrokerUnavailableError",
    "ChannelList",
    "ChannelOrder",
    "ChannelOverview",
    "ChannelRow",
    "Client",
    "ClientEvidence",
    "CloseCode",
    "ClosedError",
    "ConfigurationError",
    "ConnectOptions",
    "Connection",
    "ConnectionList",
    "ConnectionOrder",
    "ConnectionRow",
    "EndedClient",
    "Envelope",
    "Explanation",
    "Finding",
    "FullPolicy",
    "Gap",
    "Health",
    "History",
    "HistoryPage",
    "InvalidChannelError",
    "InvalidDataError",
    "InvalidMessageError",
    "InvalidPositionError",
    "InvalidTokenError",
    "JoinRefusedError",
    "Joined",
    "LifecycleError",
    "Limits",
    "LinkState",
    "Message",
    "MetricsEndpoint",
    "MissingDependencyError",
    "NotStartedError",
    "OnConnection",
    "OnGap",
    "OnMessage",
    "OnSlow",
    "OriginRefusedError",
    "Overview",
    "Overviews",
    "PayloadTooLargeError",
    "PermissionExpiredError",
    "Position",
    "Presence",
    "PresenceChange",
    "PresenceSnapshot",
    "PresenceView",
    "PresenceWatch",
    "PresentUser",
    "Problem",
    "PublishError",
    "PublishOutcomeUnknownError",
    "Receipt",
    "RefusedError",
    "RefusedJoin",
    "Settings",
    "SlowConsumer",
    "SlowConsumerError",
    "StateChange",
    "Statistics",
    "SubscribeError",
    "Subscription",
    "TokenCheckUnavailableError",
    "TokenExpiredError",
    "TooManyChannelsError",
    "TooManyConnectionsError",
    "TooManyPresentError",
    "TypedChannel",
    "Who",
    "Worker",
    "WorkerEvidence",
    "WorkerOverview",
    "WrongLoopError",
    "instrument_metrics",
    "metrics_routes",
]

__version__: str = "0.1.0"
