"""`kafka://`: one topic, every worker reads all of it; see `broadcaster.py`."""

from backplane.adapters.kafka.broadcaster import KafkaBroadcaster, KafkaOptions

__all__ = ["KafkaBroadcaster", "KafkaOptions"]
