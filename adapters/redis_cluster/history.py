"""The history of a channel on a cluster: on the node that serves the channel, in the slot of the channel.

The script that stores a message publishes it too, and a server runs a script on one slot. So the keys have the hash tag
of the channel, prefix included: `shop:$backplane/{shop:orders}/place`. A channel with a hash tag of its own shares it
with other channels, so its name follows: `shop:$backplane/{tenant-7}/%7Btenant-7%7D:orders/place`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar, Final

from backplane.adapters.redis.errors import error_text
from backplane.adapters.redis.history import UNUSED_NAME, RedisHistory, escaped
from backplane.adapters.redis.scripts import SHARD_SCRIPTS
from backplane.adapters.redis_cluster.slots import hashed_part, slot_of, tag_of
from backplane.errors import ConfigurationError
from backplane.journal.events import BROKER_DETAIL
from backplane.journal.writing import write

if TYPE_CHECKING:
    import hiredis

    from backplane.adapters.redis.publisher_link import PublisherLink
    from backplane.adapters.redis.scripts import Scripts

__all__ = ["ShardHistory"]

logger: Final = logging.getLogger("backplane.adapters.redis_cluster.history")

# What a node replies about a slot that it does not serve, or does not serve now.
_ELSEWHERE: Final = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")


class ShardHistory(RedisHistory):
    """Packs the commands of one adapter, for the node that serves the channel."""

    _scripts: ClassVar[Scripts] = SHARD_SCRIPTS

    def begin(self) -> None:
        """Check the options, before the nodes are prepared.

        Raises:
            ConfigurationError: Nothing can be kept with them.
        """
        self._begin()
        if "{" in self._prefix and not self._has_tag:
            raise ConfigurationError(
                f"redis: with the prefix {self._prefix!r} the history of a channel would be in another slot than the "
                "channel: leave out its brace, or close it, as in {shop}:"
            )
        self.is_prepared = True

    async def prepare_node(self, link: PublisherLink, where: str, slot: int) -> None:
        """Load the scripts at the node that serves a slot, and check that it permits what they do.

        Raises:
            BrokerError: It cannot keep messages, or does not permit it; not retriable.
            BrokerUnavailableError: The link ended, or the server accepts no commands at present.
        """
        await self._try(link, where, f"{self._start}{{{tag_of(slot)}}}/{UNUSED_NAME}")

    @property
    def _has_tag(self) -> bool:
        prefix = self._prefix.encode()
        return hashed_part(prefix) != prefix

    def _stem(self, channel: str) -> str:
        if self._has_tag:
            return super()._stem(channel)
        name = (self._prefix + channel).encode()
        tag = hashed_part(name)
        if tag == name and b"}" not in name:
            return f"{self._start}{{{tag.decode()}}}"
        # A brace that is no part of a tag would end one: `}x` has a tag of the same slot.
        word = tag_of(slot_of(name)) if b"}" in tag else tag.decode()
        return f"{self._start}{{{word}}}/{escaped(channel)}"

    def _judge(self, reply: hiredis.ReplyError, where: str) -> None:
        if (text := error_text(reply)).startswith(_ELSEWHERE):
            words = "what %(node)s permits was not found out: %(reason)s"
            write(logger, BROKER_DETAIL, words, node=where, reason=text)
            return
        super()._judge(reply, where)
