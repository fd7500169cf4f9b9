"""Why a client receives nothing: the verb `Backplane.explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.channels import validate_channel
from backplane.connection.connection import Connection
from backplane.errors import InvalidDataError
from backplane.explain.evidence import Question, is_client_name
from backplane.option_checks import check_number
from backplane.worker.why import ask_why

if TYPE_CHECKING:
    from backplane.explain.explanation import Explanation
    from backplane.worker.lifecycle import Lifecycle

__all__ = ["ExplainVerbs"]


class ExplainVerbs:
    """The question why a client does not receive a channel. It needs `Backplane(cluster=True)`."""

    _lifecycle: Lifecycle

    async def explain(
        self,
        *,
        channel: str,
        client: Connection | str | None = None,
        test: bool = True,
        timeout_seconds: float = 2.0,
    ) -> Explanation:
        """Find out why a client does not receive a channel: ask every worker, and follow a message on its way.

        A test message is published on the channel. It takes the way of any other; no client, stream, subscription or
        history gets it. Each worker with a subscriber waits for it, half of the time at most, and states what it knows
        of the client and the channel. The first fault on the way is the verdict, with what to do about it.

        Where no worker has the client, up to five other prefixes on the same server (Redis), or names of the same user
        (ipc), are asked, for up to three seconds more. A worker whose link is lost answers for itself alone.

        It sees as far as the server's socket: what a proxy or the client itself does with a message is not known. Of
        clients that have ended and of joins that were refused a worker remembers the last 200. Each worker answers five
        questions a second.

        Args:
            channel: The channel.
            client: A connection, its id or at least the first four digits of it; the id of an event stream or of a
                subscription; or a user, a `client_key` or the name of a subscription. Defaults to any client: then the
                channel alone is looked at.
            test: Whether a test message is published. Defaults to `True`; `Settings(path_test=False)` prevents it.
            timeout_seconds: How long to wait for the workers, and before that for the broker to take the test message.
                Defaults to 2.

        Raises:
            InvalidChannelError: The name is not legal.
            InvalidDataError: `client` is empty, or longer than 512 characters.
            ConfigurationError: Without `cluster`, or `timeout_seconds` is not a number more than 0.
            BrokerUnavailableError, PublishOutcomeUnknownError: The question could not be published, from a process that
                is no worker. A worker answers from what it knows itself then.
            PublishError: The broker refused the question. A test message that it refused is stated in the explanation.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        check_number("timeout_seconds", timeout_seconds)
        asked = client.id if isinstance(client, Connection) else client
        if asked is not None and not is_client_name(asked):
            raise InvalidDataError(f"client is a connection, an id, a user or a client_key, not {asked!r:.100}")
        question = Question(channel=validate_channel(channel), client=asked)
        return await ask_why(self._lifecycle.running(), question, test=test, seconds=timeout_seconds)
