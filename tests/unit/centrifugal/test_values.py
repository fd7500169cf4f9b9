"""`backplane.centrifugal.values`: what the application passes, as JSON in a field of the protocol (section 11)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.centrifugal.encoding import JSON, PROTOBUF, Encoding
from backplane.centrifugal.values import as_json
from backplane.errors import InvalidDataError


@pytest.mark.parametrize("encoding", [JSON, PROTOBUF], ids=["json", "protobuf"])
@pytest.mark.parametrize("value", [None, 0, "", "text", "7", '{"a":1}', "ü\n\u2028", [1], {"a": None}])
def test_values(encoding: Encoding, value: Any) -> None:
    """Each value is its JSON, in one line; a text stays a text, whatever is in it."""
    written = as_json(encoding, value)
    assert json.loads(written) == value
    assert b"\n" not in written


@pytest.mark.parametrize("value", [object(), "\ud800"])
def test_what_is_no_json(value: Any) -> None:
    """It is refused."""
    with pytest.raises(InvalidDataError):
        as_json(JSON, value)
