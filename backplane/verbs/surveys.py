"""The verbs of a `Backplane` that list the workers, and ask each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from backplane.control.messages import Selector
from backplane.option_checks import check_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.cluster_types import Answers, Worker
    from backplane.control.surveys import SurveyHandler, Surveys
    from backplane.worker.lifecycle import Lifecycle

__all__ = ["SurveyVerbs"]

_HandlerT = TypeVar("_HandlerT", bound="SurveyHandler")


class SurveyVerbs:
    """The workers, and what they answer to the application. They need `Backplane(cluster=True)`."""

    _lifecycle: Lifecycle
    _surveys: Surveys

    async def workers(self) -> list[Worker]:
        """Return the workers of the cluster that are known, this one first.

        Those that have ended are among them for two minutes more, with `is_alive=False`. After the start it takes a
        heartbeat (3 seconds) until all others are known.

        Raises:
            ConfigurationError: Without `cluster=True`.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        return self._lifecycle.running().members().workers()

    def on_survey(self, name: str) -> Callable[[_HandlerT], _HandlerT]:
        """Answer surveys named `name` by a function of the question, on this worker: `@backplane.on_survey("load")`.

        A function or a coroutine function, which returns anything JSON (what `publish` takes, except bytes that are not
        UTF-8). It may take nine tenths of the time that the survey waits, and 60 seconds at most; then it is cancelled.
        What it raises is logged here, and the caller of `survey` is given the name of the error's class.

        Raises:
            ConfigurationError: The name is no text, or has a handler already.
        """

        def register(handler: _HandlerT) -> _HandlerT:
            self._surveys.set(name, handler)
            return handler

        return register

    async def survey(self, name: str, question: object = None, *, timeout_seconds: float = 2.0) -> Answers:
        """Ask every worker, and return what those answered that did, and which did not.

        Returns as soon as all workers that are alive have answered, at the latest after `timeout_seconds`. A worker
        that ends in order meanwhile is missing at once; one that was killed counts as alive, and is waited for, until
        `worker_down_seconds` after its last heartbeat. No answer raises.

        Args:
            name: Which handler (`on_survey`) is to answer.
            question: Anything JSON, which the handler is passed.
            timeout_seconds: How long to wait, sending included. Defaults to 2; handlers may take nine tenths of it, and
                60 seconds at most.

        Raises:
            ConfigurationError: Without `cluster`, or `timeout_seconds` is not a number more than 0.
            InvalidDataError: The question is not JSON.
            BrokerUnavailableError, PublishError, PayloadTooLargeError: The question could not be published.
            PublishOutcomeUnknownError: The link ended, or time ran out, before the broker's answer.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        check_number("timeout_seconds", timeout_seconds)
        # A worker whose handler hangs answers that in time, which sets it apart from one that is gone.
        arguments = {"name": name, "question": question, "seconds": 0.9 * timeout_seconds}
        return await self._lifecycle.running().members().requests.ask("survey", Selector(), arguments, timeout_seconds)
