"""`backplane.stats.queries`: pages of lists, and what cannot be asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane import ConfigurationError
from backplane.stats.queries import MAX_ROWS, ChannelQuery, ConnectionQuery, query_of


@pytest.mark.parametrize(
    "query",
    [
        ChannelQuery(),
        ChannelQuery(sort="name", prefix="a", limit=MAX_ROWS, after="b", names=("c",)),
        ConnectionQuery(),
        ConnectionQuery(channel="a", client="b", sort="opened", limit=1, after="-5:x"),
    ],
)
def test_it_comes_back_as_it_was_sent(query: ChannelQuery | ConnectionQuery) -> None:
    """A worker reads what was asked; what another version asks beside is left out."""
    sent = json.loads(json.dumps(query.as_json())) | {"of_tomorrow": 1}
    kind: Any = type(query)
    assert query_of(kind, sent) == query


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        (ChannelQuery, {"sort": "age"}, "sort must be one of subscribers, name, not 'age'"),
        (ChannelQuery, {"prefix": 5}, "prefix must be a text, not 5"),
        (ChannelQuery, {"sort": "name", "after": 5}, "after must be a text, not 5"),
        (ChannelQuery, {"after": "a"}, "after needs sort='name'"),
        (ChannelQuery, {"limit": 0}, "limit must be a whole number"),
        (ChannelQuery, {"limit": 2.5}, "limit must be a whole number"),
        (ChannelQuery, {"limit": "many"}, "limit must be a whole number"),
        (ChannelQuery, {"limit": 201}, "limit must be at most 200, not 201"),
        (ChannelQuery, {"names": ["a"] * 201}, "names takes at most 200"),
        (ConnectionQuery, {"sort": ["x"]}, "sort must be one of waiting"),
        (ConnectionQuery, {"channel": 5}, "channel must be a text"),
        (ConnectionQuery, {"client": ["a"]}, "client must be a text"),
        (ConnectionQuery, {"after": "x"}, "after takes the position that an answer has, not 'x'"),
    ],
)
def test_what_cannot_be_asked_for(kind: Any, arguments: dict[str, Any], words: str) -> None:
    """Each value is checked, by the one that asks and by the worker."""
    with pytest.raises(ConfigurationError, match=words):
        query_of(kind, arguments)


def test_places() -> None:
    """A page begins after the place of the last row of the page before."""
    assert ConnectionQuery().begins_after() is None
    assert ConnectionQuery(after="-7.5:ab:c").begins_after() == (-7.5, "ab:c")
