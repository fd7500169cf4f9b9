"""How many connections a user has, on all workers: asked at each handshake that is limited by it, and at no other.

A client that connects asks every worker for the user's other connections. Of two that connect at the same time each is
in its handshake while the other asks, wherever they are. Then the one with the smaller id counts for the one with the
larger id, and not the other way round: an answer leaves out handshakes with a larger id, and a handshake that waits for
answers notes each smaller id that asks meanwhile. So with room for one more exactly one is admitted.
"""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from backplane.control.messages import Command, Selector
from backplane.errors import BrokerError, InvalidDataError
from backplane.journal.events import CLUSTER_FAILED
from backplane.option_checks import check_number

if TYPE_CHECKING:
    from backplane.control.client_index import ClientIndex
    from backplane.control.commands import CommandReceiver
    from backplane.control.requests import Requests
    from backplane.journal.journal import Journal

__all__ = ["UserCap"]

logger: Final = logging.getLogger("backplane.control.user_cap")

_KIND: Final = "others"
_SECONDS: Final = 1.0


class UserCap:
    """Counts the connections of a user at a handshake.

    Args:
        clients: The clients of this worker.
        requests: Asks the other workers.
        commands: Answers them.
        journal: How workers that do not answer are logged.
        seconds: How long answers are awaited.
    """

    def __init__(
        self,
        clients: ClientIndex,
        requests: Requests,
        commands: CommandReceiver,
        journal: Journal,
        *,
        seconds: float = _SECONDS,
    ) -> None:
        self._clients = clients
        self._requests = requests
        self._journal = journal
        self._seconds = seconds
        # By user, for each client whose handshake waits for answers: the connections that count for it.
        self._asking: dict[str, dict[str, set[str]]] = {}
        commands.add_kind(_KIND, self._answer)

    async def has_room(self, client_id: str, most: int) -> bool:
        """Return whether the user of a client that is in its handshake has fewer than `most` other connections.

        A client without a user has room. A worker that does not answer within a second counts as one without
        connections of the user, which is logged.
        """
        user = self._clients.user_of(client_id)
        if user is None:
            return True
        asking = self._asking.setdefault(user, {})
        others = asking[client_id] = set[str]()
        try:
            selector = Selector(user=user, exclude=client_id)
            others.update(self._others(selector, client_id, most))
            if len(others) < most:
                others.update(await self._asked(selector, most))
        finally:
            del asking[client_id]
            if not asking:
                del self._asking[user]
        return len(others) < most

    async def _asked(self, selector: Selector, most: int) -> set[str]:
        try:
            answers = await self._requests.ask(_KIND, selector, {"most": most}, self._seconds)
        except BrokerError as error:
            words = "max_connections_per_user: a client was admitted without the answers of other workers: %(reason)s"
            self._journal.log(logger, CLUSTER_FAILED, words, reason=error)
            return set()
        if silent := len(answers.missing) + len(answers.errors):
            words = "max_connections_per_user: %(workers)d workers did not answer; their connections do not count"
            self._journal.log(logger, CLUSTER_FAILED, words, workers=silent)
        lists: list[list[Any]] = [value for value in answers.by_worker.values() if isinstance(value, list)]
        return {other for others in lists for other in others if isinstance(other, str)}

    async def _answer(self, command: Command) -> list[str]:
        """Answer the question of another handshake, or of one of this worker."""
        most: Any = command.arguments.get("most")
        check_number("most", most, whole=True)
        asker = command.selector.exclude
        if asker is None:
            raise InvalidDataError("the client that asks must be named")
        return self._others(command.selector, asker, most)

    def _others(self, selector: Selector, asker: str, most: int) -> list[str]:
        asking = self._asking.get(selector.user or "", {})
        for client_id, others in asking.items():
            if client_id > asker:
                others.add(asker)
        ids = (client.id for client in self._clients.select(selector))
        return list(islice((other for other in ids if other not in asking or other < asker), most))
