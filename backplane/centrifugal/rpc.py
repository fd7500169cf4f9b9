"""The RPCs of an application: functions that clients call by name, with data that pydantic validates."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from backplane.centrifugal.codes import (
    BAD_REQUEST,
    INTERNAL,
    METHOD_NOT_FOUND,
    UNAVAILABLE,
    CommandError,
    ProtocolError,
)
from backplane.connection.validation import validator_for
from backplane.errors import BrokerUnavailableError, ClosedError, ConfigurationError, InvalidMessageError
from backplane.journal.events import HOOK_FAILED
from backplane.journal.place import place_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.connection.connection import Connection
    from backplane.connection.validation import Validator
    from backplane.journal.journal import Journal

__all__ = ["RpcRegistry"]

logger: Final = logging.getLogger("backplane.centrifugal.rpc")

_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class RpcRegistry:
    """The RPCs of an endpoint, by name.

    An RPC is a function or a coroutine function, `async def get(connection: Connection, query: OrderQuery) -> Order`:

    - Its second parameter is what the client sends: any type that pydantic can validate. A client that sends no data
      sends `null`, so `query: OrderQuery | None` makes it optional. The parameter can be left out: what the client
      sends is then ignored.
    - Its result is checked and sent as JSON, in its annotated type: a field that only a subclass has is not sent.
    - `bytes` in either place is the data as it is on the wire, with no validation: for applications whose payloads are
      Protobuf. To a client that speaks JSON the text of a JSON value is sent as that, and any other as a JSON string.

    It runs in a task of the connection. A plain function runs in the event loop and must not block. SDKs wait 5 s for
    an answer. The dependencies of FastAPI are not supported: take what an RPC needs from `connection.context`, and
    resolve dependencies in the route, before the handshake.
    """

    def __init__(self) -> None:
        self._methods: dict[str, _Method] = {}

    def register(self, name: str, function: Callable[..., Any]) -> None:
        """Let clients call `function` as `name`.

        Raises:
            ConfigurationError: There is an RPC of this name, or the function cannot be one: it has other parameters, is
                not annotated, or with a type that pydantic cannot validate in bounded time. The message names the
                remedy.
        """
        unchecked: Any = name
        if not isinstance(unchecked, str) or not name:
            raise ConfigurationError(f"the name of an RPC is a text of one character or more, not {name!r:.100}")
        if name in self._methods:
            raise ConfigurationError(f"there is an RPC {name!r} already: choose another name for one of the two")
        self._methods[name] = _method(name, function)

    async def call(self, name: str, connection: Connection, data: bytes, journal: Journal) -> bytes:
        """Return the result of an RPC that a client calls.

        Args:
            name: Its name.
            connection: The client.
            data: What the client sends.
            journal: How an RPC that fails is logged.

        Raises:
            CommandError: The answer to the client: the one that the function raised, or 104 where there is no such RPC,
                107 where `data` is invalid, 100, temporary, where the function failed. Nothing else is raised, but
                `CancelledError`. A failure is logged, other than one of a broker or of an ended connection.
        """
        method = self._methods.get(name)
        if method is None:
            raise METHOD_NOT_FOUND.error()
        try:
            arguments = method.arguments(data)
            result = method.function(connection, *arguments)
            if inspect.isawaitable(result):
                result = await result
            return method.encode(result)
        except CommandError:
            raise
        except (ClosedError, BrokerUnavailableError):
            raise UNAVAILABLE.error() from None
        except Exception as error:
            words = "the RPC %(hook)r failed: %(error)s"
            journal.log(
                logger,
                HOOK_FAILED,
                words,
                hook=name,
                error=place_of(error),
                connection=connection.id,
                client_key=connection.user,
            )
            raise INTERNAL.error() from None


@dataclass(frozen=True, slots=True)
class _Method:
    """An RPC.

    Attributes:
        function: The application's function.
        takes: What validates the data; `None` for data as it is.
        has_data: Whether the function takes the data.
        returns: What the result is; `None` for bytes.
    """

    function: Callable[..., Any]
    has_data: bool
    takes: Validator[Any] | None
    returns: Validator[Any] | None

    def arguments(self, data: bytes) -> tuple[Any, ...]:
        """Return what the function is called with after the connection.

        Raises:
            ProtocolError: The data is invalid.
        """
        if not self.has_data:
            return ()
        if self.takes is None:
            return (data,)
        try:
            return (self.takes.parse(data or b"null"),)
        except InvalidMessageError as error:
            raise ProtocolError(BAD_REQUEST.code, f"{BAD_REQUEST.message}: {error.reason}") from None

    def encode(self, result: Any) -> bytes:
        """Return the result as it is sent; raises where it is not of its type."""
        if self.returns is not None:
            adapter = self.returns.adapter
            return adapter.dump_json(adapter.validate_python(result), by_alias=True, warnings="error")
        if not isinstance(result, bytes):
            raise TypeError(f"an RPC that is annotated `-> bytes` returned {type(result).__name__}")
        return result


def _method(name: str, function: Callable[..., Any]) -> _Method:
    try:
        signature = inspect.signature(function, eval_str=True)
    except Exception as error:  # evaluating an annotation can raise anything
        raise ConfigurationError(
            f"the parameters of the RPC {name!r} cannot be read ({type(error).__name__}: {error}): register a "
            "function, and import the types of its annotations at runtime, not under TYPE_CHECKING alone"
        ) from error
    parameters = list(signature.parameters.values())
    data = parameters[1:]
    if not _is_callable_with(parameters):
        raise ConfigurationError(
            f"the RPC {name!r} takes {signature}, and an RPC takes the connection and at most one parameter more, the "
            "data of the client, without a default: async def get(connection: Connection, query: OrderQuery) -> Order. "
            "FastAPI's dependencies are not supported in an RPC: use connection.context"
        )
    return _Method(
        function,
        has_data=bool(data),
        takes=_validator(name, repr(data[0].name), data[0].annotation) if data else None,
        returns=_validator(name, "its result", signature.return_annotation),
    )


def _is_callable_with(parameters: list[inspect.Parameter]) -> bool:
    """Return whether a function with these parameters takes a connection, or that and the data of the client."""
    return (
        len(parameters) in (1, 2)
        and all(parameter.kind in _POSITIONAL for parameter in parameters)
        and all(parameter.default is parameter.empty for parameter in parameters[1:])
        and not any(
            type(entry).__module__ == "fastapi.params"
            for parameter in parameters
            for entry in getattr(parameter.annotation, "__metadata__", ())  # of `Annotated`
        )
    )


def _validator(name: str, what: str, annotation: Any) -> Validator[Any] | None:
    if annotation is bytes:
        return None
    if annotation is inspect.Parameter.empty:
        raise ConfigurationError(
            f"the RPC {name!r} has no annotation for {what}: annotate it with a type that pydantic knows, with bytes "
            "for data as it is on the wire, or with None for no result"
        )
    try:
        return validator_for(annotation)
    except ConfigurationError as error:
        raise ConfigurationError(f"the RPC {name!r}, {what}: {error}") from error
