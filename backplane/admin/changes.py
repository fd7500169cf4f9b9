"""What the live page changes, each where `allow` has its right: a message is published, connections are closed."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64decode
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.responses import JSONResponse

from backplane.admin.access import visitor_of
from backplane.channels import validate_channel
from backplane.close_codes import CloseCode
from backplane.errors import BackplaneError, BrokerError, ConfigurationError, InvalidChannelError, InvalidDataError
from backplane.health_routes import broker_error_response
from backplane.journal.events import ADMIN_ACTION
from backplane.journal.writing import write

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from backplane.cluster_types import Answers
    from backplane.core import Backplane

__all__ = ["Changes"]

logger: Final = logging.getLogger("backplane.admin.changes")

# More than any broker takes by default, in base64.
_MAX_BODY_BYTES: Final = 4 * 1024 * 1024
_CONFIRM_SECONDS: Final = 2.0
_MAX_CONNECTIONS: Final = 100


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Publish(_Body):
    channel: str
    text: str | None = None
    base64: str | None = None

    @model_validator(mode="after")
    def check_data(self) -> Self:
        if (self.text is None) == (self.base64 is None):
            raise ValueError("give one of 'text' and 'base64'")
        _ = self.data
        return self

    @property
    def data(self) -> str | bytes:
        return self.text if self.base64 is None else b64decode(self.base64, validate=True)  # type: ignore[return-value]


class _Disconnect(_Body):
    connections: Annotated[list[str], Field(min_length=1, max_length=_MAX_CONNECTIONS)] | None = None
    client_key: str | None = None
    channel: str | None = None
    code: int = int(CloseCode.FORBIDDEN)
    reason: str = ""

    @property
    def targets(self) -> list[tuple[str | None, str | None, str | None]]:
        """The selections, one for each command: connection, client key, channel."""
        if self.connections is None:
            return [(None, self.client_key, self.channel)]
        return [(each, self.client_key, self.channel) for each in self.connections]


_BodyT = TypeVar("_BodyT", bound=_Body)


class Changes:
    """The handlers of `POST api/publish` and `POST api/disconnect`."""

    def __init__(self, backplane: Backplane) -> None:
        self._backplane = backplane

    async def publish(self, request: Request) -> Response:
        """Publish `{"channel", "text" or "base64"}`."""
        try:
            body = await _body_of(request, _Publish)
            validate_channel(body.channel)
            kind = "bytes" if isinstance(body.data, bytes) else "characters"
            _log(self._backplane, request, "publish", body.channel, f"{len(body.data):,} {kind}")
            receipt = await self._backplane.publish(body.channel, body.data)
        except BackplaneError as error:
            return await _refused(request, error)
        position = None if receipt.position is None else str(receipt.position)
        return JSONResponse({"channel": body.channel, "position": position})

    async def disconnect(self, request: Request) -> Response:
        """Close `{"connections": [...], "client_key" or "channel", "code", "reason"}`; see `Backplane.disconnect`."""
        try:
            body = await _body_of(request, _Disconnect)
            for target in body.targets:
                _log(self._backplane, request, "disconnect", " ".join(filter(None, target)), f"code {body.code}")
            answers = await asyncio.gather(*(self._close(body, *target) for target in body.targets))
        except BackplaneError as error:
            return await _refused(request, error)
        closed = sum(sum(answer.by_worker.values()) for answer in answers)
        return JSONResponse({**_summary(answers[0]), "closed": closed})

    async def _close(
        self, body: _Disconnect, connection: str | None, client_key: str | None, channel: str | None
    ) -> Answers:
        return await self._backplane.disconnect(
            connection=connection,
            user=client_key,
            channel=channel,
            code=body.code,
            reason=body.reason,
            confirm_seconds=_CONFIRM_SECONDS,
        )


def _summary(answers: Answers) -> dict[str, Any]:
    """Return how many workers were asked, how many answered, and which are missing: in every merged answer."""
    answered = len(answers.by_worker) + len(answers.errors)
    missing = [worker.id for worker in answers.missing]
    return {"asked": answered + len(missing), "answered": answered, "missing": missing}


async def _refused(request: Request, error: BackplaneError) -> Response:
    if isinstance(error, BrokerError | InvalidChannelError):
        return await broker_error_response(request, error)
    status = 400 if isinstance(error, ConfigurationError | InvalidDataError) else 503
    return JSONResponse({"detail": str(error)}, status)


async def _body_of(request: Request, model: type[_BodyT]) -> _BodyT:
    """Return the body of a request.

    Raises:
        InvalidDataError: It is too large, or not of this form.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise InvalidDataError(f"the body takes more than {_MAX_BODY_BYTES:,} bytes")
    try:
        return model.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidDataError(f"{place}: {first['msg']}" if place else first["msg"]) from None


def _log(backplane: Backplane, request: Request, action: str, target: str, detail: str) -> None:
    """Log a change before it is made: it may be made though its outcome is not known."""
    words = "admin: %(action)s of %(target)r by %(by)s (%(reason)s)"
    by = visitor_of(request).name or "a visitor without a name"
    runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
    log = write if runtime is None else runtime.journal.log
    log(logger, ADMIN_ACTION, words, action=action, target=target, by=by, reason=detail)
