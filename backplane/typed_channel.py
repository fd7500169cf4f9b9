"""Channels whose messages have a type: `orders = backplane.channel("orders:{id}", Order)`."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from string import Formatter
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, overload

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from backplane.channels import validate_channel
from backplane.connection.validation import error_details, validator_for
from backplane.errors import ConfigurationError, InvalidChannelError, InvalidDataError, InvalidMessageError
from backplane.fanout.codec import JsonText
from backplane.message import Gap

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from pydantic import TypeAdapter

    from backplane.connection.connection import Connection
    from backplane.connection.validation import Validator
    from backplane.fanout.backlog import Backlog
    from backplane.fanout.subscriber_options import Since
    from backplane.fanout.subscription import Subscription
    from backplane.message import Message, Position, Receipt

__all__ = ["PubSub", "TypedChannel", "TypedMessages", "names_of"]

ModelT = TypeVar("ModelT")

# A placeholder of such a name could not be given: the methods have an option of that name.
_OPTIONS: Final = frozenset({"exclude", "idempotency_key", "backlog", "since", "rewind"})

# Characters that a value may hold as part of a name; every other punctuation in a template separates its levels.
_WORD_MARKS: Final = "-_ "


class PubSub(Protocol):
    """What typed channels publish and subscribe through: a `Backplane`."""

    async def publish(
        self,
        channel: str,
        data: object,
        *,
        exclude: Connection | str | None = None,
        idempotency_key: str | bytes | None = None,
    ) -> Receipt:
        """Publish `data`."""
        ...

    async def publish_in(
        self,
        session: object,
        channel: str,
        data: object,
        *,
        exclude: Connection | str | None = None,
        idempotency_key: str | bytes | None = None,
    ) -> None:
        """Publish `data` in a transaction."""
        ...

    def subscribe(
        self, *channels: str, backlog: Backlog | None, since: Since, rewind: int, exact: bool
    ) -> AbstractAsyncContextManager[Subscription]:
        """Subscribe a consumer."""
        ...


class TypedChannel(Generic[ModelT]):
    """Channels whose messages are all of one type, as `Backplane.channel` makes them.

    Args:
        backplane: Where it publishes and subscribes.
        template: The channels' names, such as `orders:{id}`; `{{` and `}}` stand for braces. The value of a placeholder
            is converted with `str`. It cannot be empty, nor hold the punctuation that separates the template's levels
            (here `:`), so that no value leads to a channel of another template.
        model: A pydantic model, or any type pydantic can validate (a dataclass, a `TypedDict`, a union), or a
            `TypeAdapter`.

    Attributes:
        invalid: How many received messages were dropped because they were not of the type.

    Raises:
        ConfigurationError: The template or the type cannot be used.
        InvalidChannelError: The template has no placeholders and is no legal channel.
    """

    @overload
    def __init__(self, backplane: PubSub, template: str, model: type[ModelT] | TypeAdapter[ModelT]) -> None: ...
    @overload
    def __init__(self: TypedChannel[Any], backplane: PubSub, template: str, model: object) -> None: ...
    def __init__(self, backplane: PubSub, template: str, model: object) -> None:
        self._backplane = backplane
        self._template = template
        self._validator: Validator[ModelT] = validator_for(model)
        self._forbidden = _placeholders(template)
        self.invalid: int = 0
        if not self._forbidden:
            self.name()

    def __repr__(self) -> str:
        return f"<TypedChannel {self._template!r}>"

    def name(self, /, **placeholders: object) -> str:
        """Return the channel's name, for joins: `orders.name(id=42)` is `"orders:42"`.

        Raises:
            TypeError: A placeholder is missing or unknown, or its value is `None` or bytes.
            InvalidChannelError: A value is empty or holds a separator of the template, or the whole is too long.
        """
        if placeholders.keys() != self._forbidden.keys():
            raise TypeError(_mismatch(self._template, self._forbidden, placeholders))
        values = {
            name: _value(self._template, name, placeholders[name], self._forbidden[name]) for name in placeholders
        }
        return validate_channel(self._template.format(**values))

    async def publish(
        self,
        message: ModelT | Mapping[str, Any],
        /,
        *,
        exclude: Connection | str | None = None,
        idempotency_key: str | bytes | None = None,
        **placeholders: object,
    ) -> Receipt:
        """Publish `message` as JSON text: `await orders.publish(Order(...), id=42)`.

        Field names are the aliases, where there are any, as in FastAPI's answers. An instance of the model is taken as
        it is; anything else, such as a dict, is validated. `exclude` and `idempotency_key` are those of
        `Backplane.publish`, and so is what is returned.

        Raises:
            InvalidDataError: `message` is not of the type.
            TypeError, InvalidChannelError: As `name`.
            BackplaneError: As `Backplane.publish`.
        """
        channel = self.name(**placeholders)
        data = self.encode(message)
        return await self._backplane.publish(channel, data, exclude=exclude, idempotency_key=idempotency_key)

    async def publish_in(
        self,
        session: object,
        message: ModelT | Mapping[str, Any],
        /,
        *,
        exclude: Connection | str | None = None,
        idempotency_key: str | bytes | None = None,
        **placeholders: object,
    ) -> None:
        """Publish `message` when, and only when, the transaction of `session` commits: see `Backplane.publish_in`.

            await orders.publish_in(session, Order(...), id=42)

        Raises:
            InvalidDataError, TypeError, InvalidChannelError: As `publish`.
            BackplaneError: As `Backplane.publish_in`.
        """
        channel = self.name(**placeholders)
        data = self.encode(message)
        await self._backplane.publish_in(session, channel, data, exclude=exclude, idempotency_key=idempotency_key)

    @asynccontextmanager
    async def subscribe(
        self, /, *, backlog: Backlog | None = None, since: Since = None, rewind: int = 0, **placeholders: object
    ) -> AsyncGenerator[TypedMessages[ModelT]]:
        """Subscribe: `async with orders.subscribe(id=42) as messages: async for order in messages: ...`.

        Yields validated models, and a `Gap` where messages may be missing. A message that is not of the type, such as
        one of another program, is dropped: counted in `invalid` and in `Backplane.statistics`, and logged, a burst in
        one line.

        Args:
            backlog: As in `Backplane.subscribe`.
            since: As in `Backplane.subscribe`; `messages.position` is what to store for it, as text.
            rewind: As in `Backplane.subscribe`.
            **placeholders: What fills the template.

        Raises:
            TypeError, InvalidChannelError: As `name`.
            BackplaneError: As `Backplane.subscribe`.
        """
        name = self.name(**placeholders)
        async with self._backplane.subscribe(name, backlog=backlog, since=since, rewind=rewind, exact=True) as messages:
            yield TypedMessages[ModelT](name, messages, self._validator, self._count_invalid)

    def encode(self, message: object) -> str:
        """Return the JSON text that `publish` publishes for `message`.

        Raises:
            InvalidDataError: `message` is not of the type.
        """
        try:
            adapter = self._validator.adapter
            text = adapter.dump_json(adapter.validate_python(message), by_alias=True, warnings="error").decode()
            return JsonText(text)
        except ValidationError as error:
            reason = InvalidMessageError(error_details(error)).reason
            raise InvalidDataError(f"not a message for {self._template!r}: {reason}") from error
        except PydanticSerializationError as error:
            raise InvalidDataError(f"not a message for {self._template!r}: {error}") from error

    def _count_invalid(self) -> None:
        self.invalid += 1


class TypedMessages(Generic[ModelT]):
    """The messages of a subscription, validated. As with the subscription, cancelling the iteration loses nothing."""

    def __init__(
        self,
        channel: str,
        messages: Subscription,
        validator: Validator[ModelT],
        count_invalid: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._messages = messages
        self._validator = validator
        self._count_invalid = count_invalid
        self._message: Message | None = None

    @property
    def message(self) -> Message | None:
        """The message whose model was returned last, such as for `Tracing.consume`; `None` before the first one."""
        return self._message

    @property
    def resumed(self) -> bool:
        """As `Subscription.resumed`."""
        return self._messages.resumed

    @property
    def position(self) -> Position | None:
        """Up to where the channel was iterated; as `Subscription.position`."""
        return self._messages.position(self._channel)

    def __aiter__(self) -> AsyncIterator[ModelT | Gap]:
        return self

    async def __anext__(self) -> ModelT | Gap:
        async for item in self._messages:
            if isinstance(item, Gap):
                return item
            self._message = item
            try:
                return self._validator.parse(item.data)
            except InvalidMessageError as error:
                self._count_invalid()
                self._messages.note_invalid(item.channel, error)
        raise StopAsyncIteration


def names_of(template: str) -> re.Pattern[str]:
    """Return what matches the names of the channels of a template that can be used, and no other."""
    forbidden = _placeholders(template)
    values = {name: f"[^{re.escape(marks)}]+" if marks else ".+" for name, marks in forbidden.items()}
    parts = Formatter().parse(template)
    return re.compile("".join(re.escape(text) + values.get(name or "", "") for text, name, *_ in parts), re.DOTALL)


def _placeholders(template: str) -> dict[str, str]:
    """Return the placeholders of a template, each with the characters its value must not hold."""
    try:
        parts = list(Formatter().parse(template))
    except (ValueError, TypeError) as error:
        raise _wrong(template, f"{error}") from None
    separators = "".join(c for literal, *_ in parts for c in literal if not c.isalnum() and c not in _WORD_MARKS)
    found: dict[str, str] = {}
    for index, (_, name, specification, conversion) in enumerate(parts):
        if name is None:
            continue
        following = parts[index + 1] if index + 1 < len(parts) else ("", None, None, None)
        if not name.isidentifier() or specification or conversion:
            raise _wrong(template, "a placeholder is a plain name: orders:{id}")
        if name in _OPTIONS or name in found:
            raise _wrong(template, f"the placeholder {name!r} is {'taken twice' if name in found else 'an option'}")
        if following[1] is not None and not following[0]:
            raise _wrong(template, f"something must stand between {{{name}}} and {{{following[1]}}}")
        # In `{a}-{b}` the first of the two must not hold the hyphen.
        found[name] = separators + (following[0][0] if following[1] is not None else "")
    return found


def _value(template: str, name: str, value: object, forbidden: str) -> str:
    if value is None or isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{template!r}: {name} is {'None' if value is None else 'bytes'}, which names no channel")
    text = str(value)
    if not text:
        raise InvalidChannelError(f"{template!r}: {name} is empty")
    broken = next((character for character in text if character in forbidden), None)
    if broken is not None:
        raise InvalidChannelError(
            f"{template!r}: {name} must not hold {broken!r}, which separates the parts of the template: {text[:40]!r}"
        )
    return text


def _mismatch(template: str, known: Mapping[str, object], given: Mapping[str, object]) -> str:
    missing = [name for name in known if name not in given]
    unknown = [name for name in given if name not in known]
    faults = [f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
    takes = f"takes {', '.join(known)}" if known else "takes no placeholders"
    return f"{template!r} {takes}: {'; '.join(faults)}"


def _wrong(template: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"the channel template {template!r} cannot be used: {reason}")
