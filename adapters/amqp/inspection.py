"""What of RabbitMQ can keep messages from workers, as far as AMQP 0-9-1 shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from backplane.adapters.amqp.stream import MARKS
from backplane.errors import BrokerError
from backplane.findings import Finding

if TYPE_CHECKING:
    from backplane.adapters.amqp.options import AmqpOptions
    from backplane.adapters.amqp.publisher import PublisherConnection

__all__ = ["describe_server", "inspect_server", "inspect_stream"]

_NEEDED: Final = {
    "publisher_confirms": "publishes are never confirmed",
    "consumer_cancel_notify": "a deleted queue is noticed by the next probe, and not at once",
    "connection.blocked": "an alarm that blocks publishers has no name: publishes end without a known outcome",
}
_LONG_HEARTBEAT_SECONDS: Final = 30


async def inspect_server(publisher: PublisherConnection, options: AmqpOptions) -> list[Finding]:
    """Return what was found. One message is published, of which no worker takes note.

    Raises:
        BrokerError: The link is lost.
    """
    refused = ""
    try:
        await publisher.publish(MARKS, b"inspection")
    except BrokerError as error:
        if publisher.loss is not None:
            raise publisher.loss from error
        refused = error.reason
    return [
        _server(publisher.server),
        _alarm(publisher.blocked),
        _publish("" if publisher.blocked else refused, publisher.blocked),
        _rights(publisher.may_create, options.exchange),
        _heartbeat(options.heartbeat_seconds, publisher.proposed_heartbeat_seconds),
        _policies(options.exchange),
    ]


def inspect_stream(name: str, refused: str) -> Finding:
    """Return whether the stream of `durable=true` is as the options state it.

    Args:
        name: Its name.
        refused: Why the server did not create it; empty where it is as stated.
    """
    check = "amqp_stream"
    if not refused:
        return Finding(check=check, level="ok", text=f"stream {name!r} has the retention of the options")
    cure = (
        "where the retention differs, change the options of the workers, or delete the stream once: each worker has a "
        "Gap then; where it was not permitted, grant configure on it"
    )
    return Finding(check=check, level="warning", text=f"stream {name!r} is used as it is: {refused}", cure=cure)


def describe_server(server: dict[str, Any]) -> str:
    """Return name and version of a server.

    Args:
        server: What it states about itself.
    """
    return f"{server.get('product', 'AMQP 0-9-1')} {server.get('version', '(version not granted)')}"


def _server(server: dict[str, Any]) -> Finding:
    check, text = "amqp_server", describe_server(server)
    if cluster := server.get("cluster_name"):
        text += f", cluster {cluster}"
    abilities: dict[str, Any] = server.get("capabilities") or {}
    missing = {name: effect for name, effect in _NEEDED.items() if not abilities.get(name)}
    if not missing:
        return Finding(check=check, level="ok", text=text)
    text += f" does not state {', '.join(missing)}"
    return Finding(check=check, level="warning", text=text, cure="; ".join(missing.values()))


def _alarm(blocked: str) -> Finding:
    check = "amqp_alarm"
    if blocked:
        cure = (
            "rabbitmq-diagnostics alarms: free memory or disk of the node that it names, or raise "
            "vm_memory_high_watermark or lower disk_free_limit; publishes are accepted again by themselves"
        )
        return Finding(check=check, level="error", text=blocked, cure=cure)
    return Finding(check=check, level="ok", text="no memory or disk alarm blocks publishers")


def _publish(refused: str, blocked: str) -> Finding:
    check = "amqp_publish"
    if blocked:
        return Finding(check=check, level="skipped", text="no message can be published during the alarm")
    if refused:
        cure = (
            "ACCESS_REFUSED: grant write on the exchange; where a queue could not take it: a queue of the exchange is "
            "full and rejects (overflow = reject-publish), or its node is down"
        )
        return Finding(check=check, level="error", text=f"a message was not published: {refused}", cure=cure)
    return Finding(check=check, level="ok", text="every queue of the exchange takes messages")


def _rights(may_create: bool, exchange: str) -> Finding:
    check = "amqp_rights"
    if may_create:
        return Finding(check=check, level="ok", text=f"this user may create exchange {exchange!r}")
    text = f"this user may use exchange {exchange!r}, and not create it"
    cure = "after it was deleted, no worker comes back until it is created: grant configure on it"
    return Finding(check=check, level="warning", text=text, cure=cure)


def _heartbeat(seconds: int, proposed: int) -> Finding:
    check = "amqp_heartbeat"
    text = f"heartbeats of {seconds} s: a server that is silent for {2 * seconds} s is given up"
    if seconds > max(_LONG_HEARTBEAT_SECONDS, proposed):
        cure = "proxies and firewalls can cut what is silent for that long: lower heartbeat_seconds"
        return Finding(check=check, level="warning", text=f"{text}; the server proposes {proposed} s", cure=cure)
    return Finding(check=check, level="ok", text=text)


def _policies(exchange: str) -> Finding:
    return Finding(
        check="amqp_policies",
        level="skipped",
        text="policies (max-length, message-ttl, expires) cannot be read by AMQP: one that drops messages is a Gap",
        cure=f"rabbitmqctl list_queues name policy effective_policy_definition | grep {exchange}",
    )
