"""Which part of a list is asked for: one page at a time, in one order."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args

from backplane.errors import ConfigurationError
from backplane.option_checks import check_number

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MAX_ROWS",
    "ChannelOrder",
    "ChannelQuery",
    "ConnectionOrder",
    "ConnectionQuery",
    "query_of",
]

ChannelOrder = Literal["subscribers", "name"]
"""`subscribers`: the channels with the most come first. `name`: in the order of their names, page by page."""

ConnectionOrder = Literal["waiting", "opened", "dropped", "channels"]
"""What the clients with the most of come first: bytes that wait, seconds since they were opened, dropped messages,
channels."""

MAX_ROWS: Final = 200
"""Most rows of one page: an answer must fit into one message of the broker."""

_MAX_NAMES: Final = MAX_ROWS

_QueryT = TypeVar("_QueryT", bound="ChannelQuery | ConnectionQuery")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelQuery:
    """A part of the channels.

    Attributes:
        sort: The order.
        prefix: Only channels that start with it.
        limit: Most rows.
        after: The name of the last channel of the page before, in the order of names.
        names: Only these; the answer then has their exact numbers.

    Raises:
        ConfigurationError: A value cannot be used.
    """

    sort: ChannelOrder = "subscribers"
    prefix: str = ""
    limit: int = 50
    after: str | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_sort(self.sort, get_args(ChannelOrder))
        _check_texts({"prefix": self.prefix, "after": self.after or ""})
        _check_limit(self.limit)
        if self.after is not None and self.sort != "name":
            raise ConfigurationError("after needs sort='name': in another order channels change their places meanwhile")
        if self.names is not None and len(self.names) > _MAX_NAMES:
            raise ConfigurationError(f"names takes at most {_MAX_NAMES} channels")

    def as_json(self) -> dict[str, Any]:
        """Return it as arguments of a command."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionQuery:
    """A part of the clients.

    Attributes:
        channel: Only those that have joined it.
        client: Only the one with this id, or those of this user.
        sort: The order.
        limit: Most rows.
        after: The position of the last row of the page before, as the answer has it.

    Raises:
        ConfigurationError: A value cannot be used.
    """

    channel: str | None = None
    client: str | None = None
    sort: ConnectionOrder = "waiting"
    limit: int = 50
    after: str | None = None

    def __post_init__(self) -> None:
        _check_sort(self.sort, get_args(ConnectionOrder))
        _check_texts({"channel": self.channel or "", "client": self.client or "", "after": self.after or ""})
        _check_limit(self.limit)
        self.begins_after()

    def begins_after(self) -> tuple[float, str] | None:
        """Return the place in the order after which the page begins; `None` for the first page.

        Raises:
            ConfigurationError: `after` is no position of a row.
        """
        if self.after is None:
            return None
        value, _, name = self.after.partition(":")
        try:
            return float(value), name
        except ValueError:
            raise ConfigurationError(f"after takes the position that an answer has, not {self.after!r:.100}") from None

    def as_json(self) -> dict[str, Any]:
        """Return it as arguments of a command."""
        return asdict(self)


def query_of(kind: type[_QueryT], arguments: Mapping[str, Any]) -> _QueryT:
    """Return the query of a command; what another version asks beside is left out.

    Raises:
        ConfigurationError: A value cannot be used.
    """
    given = {name: value for name, value in arguments.items() if name in kind.__slots__}
    if isinstance(names := given.get("names"), list):
        given["names"] = tuple(map(str, names))  # pyright: ignore[reportUnknownArgumentType]
    return kind(**given)


def _check_sort(sort: object, known: tuple[str, ...]) -> None:
    if sort not in known:
        raise ConfigurationError(f"sort must be one of {', '.join(known)}, not {sort!r:.100}")


def _check_limit(limit: object) -> None:
    check_number("limit", limit, whole=True)
    if isinstance(limit, int) and limit > MAX_ROWS:
        raise ConfigurationError(f"limit must be at most {MAX_ROWS}, not {limit}: ask for the next page with after=")


def _check_texts(texts: Mapping[str, object]) -> None:
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ConfigurationError(f"{name} must be a text, not {text!r:.100}")
