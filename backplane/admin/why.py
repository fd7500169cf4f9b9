"""Why a client does not receive a channel, as the live page asks for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from backplane.errors import BackplaneError, ConfigurationError, InvalidChannelError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from backplane.core import Backplane
    from backplane.explain.evidence import WorkerEvidence
    from backplane.explain.explanation import Explanation

__all__ = ["Why"]


class Why:
    """The handler of `GET api/explain`.

    Args:
        backplane: Which asks the workers.
        mask: Returns what is shown of the user of a connection.
    """

    def __init__(self, backplane: Backplane, mask: Callable[[str], str] | None) -> None:
        self._backplane = backplane
        self._mask = mask

    async def explain(self, request: Request) -> Response:
        """Answer with an explanation; the query has `client`, `channel`, and `test=no` for none on the channel."""
        query = request.query_params
        try:
            found = await self._backplane.explain(
                channel=query.get("channel", ""), client=query.get("client") or None, test=query.get("test") != "no"
            )
        except (ConfigurationError, InvalidChannelError, InvalidDataError) as error:
            return JSONResponse({"detail": str(error)}, 400)
        except BackplaneError as error:
            return JSONResponse({"detail": str(error)}, 503)
        return JSONResponse((found if self._mask is None else _masked(found, self._mask)).to_json())


def _masked(found: Explanation, mask: Callable[[str], str]) -> Explanation:
    """Return an explanation with a part of each user, but of the one that was asked for; in its sentences too."""
    users = {user for worker in found.workers for user in _users(worker)} - {found.client}
    shown = {user: str(mask(user)) for user in users}

    def in_words(text: str) -> str:
        for user, part in shown.items():
            text = text.replace(repr(user), repr(part))
        return text

    return replace(
        found,
        text=in_words(found.text),
        findings=tuple(replace(finding, text=in_words(finding.text)) for finding in found.findings),
        workers=tuple(_masked_evidence(worker, shown, in_words) for worker in found.workers),
    )


def _users(worker: WorkerEvidence) -> set[str]:
    named = [client.user for client in worker.clients] + [client.user for client in worker.ended]
    return {*filter(None, named), *worker.near_clients}


def _masked_evidence(worker: WorkerEvidence, shown: dict[str, str], in_words: Callable[[str], str]) -> WorkerEvidence:
    def part(user: str | None) -> str | None:
        return None if user is None else shown.get(user, user)

    return replace(
        worker,
        clients=tuple(replace(client, user=part(client.user)) for client in worker.clients),
        ended=tuple(replace(client, user=part(client.user)) for client in worker.ended),
        events=tuple((seconds_ago, in_words(sentence)) for seconds_ago, sentence in worker.events),
        near_clients=tuple(shown.get(user, user) for user in worker.near_clients),
    )
