"""The RabbitMQ adapter; `backplane[amqp]` installs what it needs."""

from backplane.adapters.amqp.broadcaster import AmqpBroadcaster, AmqpOptions

__all__ = ["AmqpBroadcaster", "AmqpOptions"]
