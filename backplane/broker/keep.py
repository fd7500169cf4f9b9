"""How one publish is kept in the history of its channel, and whether the core may send it a second time."""

from __future__ import annotations

from time import monotonic, time
from typing import TYPE_CHECKING, Final

from backplane.errors import PublishOutcomeUnknownError

if TYPE_CHECKING:
    from backplane.errors import BrokerError
    from backplane.history_rules import History

__all__ = ["Keep"]

# A broker drops a second message with the same key for 300 s after it took the first (`SupportsHistory.keep`). The rest
# is for what lies between this process and the broker.
_REPEAT_SECONDS: Final = 240.0
# A message that ends the link each time it is sent must not do so for ever.
_MAX_UNKNOWN: Final = 5


class Keep:
    """The rule and the key of one publish to a channel that has a history.

    With a key the core sends the message again although it may have been published: the broker drops the second one.
    It does so while the broker certainly remembers the key, and only a few times.

    Args:
        rule: How much is kept of the channel.
        key: The idempotency key, if the application gave one.

    Attributes:
        rule, key: As above.
    """

    __slots__ = ("_began", "_unknown", "key", "rule")

    def __init__(self, rule: History, key: bytes | None = None) -> None:
        self.rule: History = rule
        self.key: bytes | None = key
        self._unknown = 0
        self._began = (0.0, 0.0)  # by both clocks

    @property
    def in_doubt(self) -> bool:
        """Whether an attempt ended without an answer: the message may have been published."""
        return self._unknown > 0

    def begin_attempt(self) -> None:
        """Note the time of an attempt with a key: the broker may remember the key from then on.

        Raises:
            PublishOutcomeUnknownError: After an attempt without an answer, another one could publish it twice.
        """
        if not self.in_doubt:
            self._began = (monotonic(), time())
        elif not self._is_remembered():
            raise PublishOutcomeUnknownError(
                f"an attempt got no answer, so it may have been published, and after {_REPEAT_SECONDS:g} s the broker "
                "may have forgotten the key"
            )

    def repeats_after(self, error: BrokerError) -> bool:
        """Note how an attempt failed; return whether another one may follow."""
        is_unknown = isinstance(error, PublishOutcomeUnknownError)
        if is_unknown:
            self._unknown += 1
        if not self.in_doubt:
            return error.retriable
        may_repeat = self.key is not None and self._unknown < _MAX_UNKNOWN and self._is_remembered()
        return may_repeat and (is_unknown or error.retriable)

    def final_error(self, error: Exception) -> Exception:
        """Return the error for the caller, where `error` ends the attempts.

        Where an earlier attempt may have published the message, no later error shows that it was not published.
        """
        if not self.in_doubt or isinstance(error, PublishOutcomeUnknownError):
            return error
        return PublishOutcomeUnknownError(f"an attempt got no answer, so it may have been published; then: {error}")

    def _is_remembered(self) -> bool:
        """Return whether the broker certainly remembers the key of the first attempt without an answer.

        The monotonic clock stands still while the machine is suspended, and the other one can be set back.
        """
        began, began_at = self._began
        return max(monotonic() - began, time() - began_at) < _REPEAT_SECONDS
