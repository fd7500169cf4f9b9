"""`backplane.connection.envelope`: the JSON around a message, byte by byte; no publisher can break out of it."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.connection.envelope import envelope_function, json_envelope
from backplane.errors import ConfigurationError
from backplane.fanout.codec import decode, encode
from backplane.message import Gap, Joined, Message, Position

POSITION = Position(b"an epoch", 7, 9)


def published(data: object) -> Message:
    """Return the message that a worker receives for `data`."""
    message = decode("a", encode(data, origin=b"a worker", published_at=1.0, states_json=True), POSITION)
    assert message is not None
    return message


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (Message(channel="a", data="x"), '{"channel":"a","text":"x"}'),
        (Message(channel='a"\n', data='"'), '{"channel":"a\\"\\n","text":"\\""}'),
        (Message(channel="a", data="é\u2028"), '{"channel":"a","text":"é\u2028"}'),
        (Message(channel="a", data="{}"), '{"channel":"a","text":"{}"}'),
        (
            Message(channel="a", data=b"\x00\xff", position=POSITION),
            f'{{"channel":"a","position":"{POSITION}","base64":"AP8="}}',
        ),
        (published({"id": 7}), f'{{"channel":"a","position":"{POSITION}","data":{{"id":7}}}}'),
        (published(None), f'{{"channel":"a","position":"{POSITION}","data":null}}'),
        (Gap(channel="a", reason="secret"), '{"channel":"a","event":"gap"}'),
        (
            Gap(channel="a", reason="secret", position=POSITION),
            f'{{"channel":"a","event":"gap","position":"{POSITION}"}}',
        ),
        (Joined(channel="a"), '{"channel":"a","event":"joined","resumed":false}'),
        (
            Joined(channel="a", position=POSITION, resumed=True),
            f'{{"channel":"a","event":"joined","position":"{POSITION}","resumed":true}}',
        ),
    ],
)  # fmt: skip
def test_format(item: Message | Gap | Joined, text: str) -> None:
    """The members and their order are part of the format; the reason of a gap is not: it is the broker's."""
    assert json_envelope(item) == text


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.one_of(JSON_VALUES, st.binary()), st.text(min_size=1))
def test_what_is_published_is_received(data: Any, channel: str) -> None:
    """Every value arrives as what it was, under the name of its kind."""
    try:
        payload = encode(data, origin=b"a worker", published_at=1.0, states_json=True)
    except ValueError:  # a lone surrogate
        return
    message = decode(channel, payload, POSITION)
    assert message is not None
    received = json.loads(json_envelope(message))
    assert (received["channel"], received["position"]) == (channel, str(POSITION))
    if isinstance(data, bytes):
        assert b64decode(received["base64"]) == data
    else:
        assert received["text" if isinstance(data, str) else "data"] == data
    assert len(received) == 3


@pytest.mark.parametrize("text", ['1,"channel":"other"', "", "NaN", "{", '"\n"', "[" * 100_000, "1 2", "\ufeff1"])
def test_text_that_is_not_the_json_it_is_marked_as(text: str) -> None:
    """What another program marks as JSON and is not stays a text: it cannot add a member or end the object."""
    message = Message(channel="a", data=text, is_json=True)
    assert json.loads(json_envelope(message)) == {"channel": "a", "text": text}


def test_envelope_function() -> None:
    """`json`, a function, or nothing."""
    assert envelope_function(None) is None
    assert envelope_function("json") is json_envelope
    assert envelope_function(repr) is repr


@pytest.mark.parametrize("envelope", ["xml", "", 0, True, {}])
def test_envelope_that_is_none(envelope: object) -> None:
    """Anything else is an error that states what is taken."""
    with pytest.raises(ConfigurationError, match="envelope must be 'json', a function or None"):
        envelope_function(envelope)
