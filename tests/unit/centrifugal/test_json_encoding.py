"""`backplane.centrifugal.json_encoding`: what is a command, and what stands for the application's data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.centrifugal.command import BadFrameError, Command
from backplane.centrifugal.encoding import JSON

DEEP = 190
"""Levels that can be published."""


def published(data: str) -> bytes:
    """Return the data of a command that publishes it."""
    (command,) = JSON.decode(f'{{"id":1,"publish":{{"channel":"a","data":{data}}}}}')
    found = command.body["data"]
    assert isinstance(found, bytes)
    return found


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("", "empty"),
        (b"", "empty"),
        ("\n", "not JSON"),
        ("hello", "not JSON"),
        (b"\x03\x08\x01\x22", "not JSON"),
        (b'{"id":1,"rpc":{"method":"\xff"}}', "not UTF-8"),
        ('{"id":1,"rpc":{"method":"\ud800"}}', "not JSON"),
        ('{"id":1,"rpc":{}}\n\n{"id":2,"rpc":{}}', "not JSON"),
        ('{"id":1,"rpc":{}}\n\n', "not JSON"),
        ('{"id":1,"rpc":{}}{"id":2,"rpc":{}}', "not JSON"),
        ('[{"id":1,"rpc":{}}]', "not an object"),
        ("null", "not an object"),
        ('{"id":1,"rpc":[]}', "not an object"),
        ('{"id":1,"rpc":{"method":7}}', "wrong type"),
        ('{"id":1,"subscribe":{"channel":7}}', "wrong type"),
        ('{"id":1,"subscribe":{"channel":"a","recover":1}}', "wrong type"),
        ('{"id":1,"connect":{"headers":{"a":7}}}', "wrong type"),
        ('{"id":1,"connect":{"headers":[]}}', "map"),
        ('{"id":1,"connect":{"subs":{"a":7}}}', "not an object"),
        ('{"id":"1","rpc":{}}', "integer"),
        ('{"id":1.0,"rpc":{}}', "integer"),
        ('{"id":true,"rpc":{}}', "integer"),
        ('{"id":-1,"rpc":{}}', "range"),
        ('{"id":4294967296,"rpc":{}}', "range"),
        ('{"id":1,"history":{"channel":"a","limit":2147483648}}', "range"),
        ('{"id":1,"subscribe":{"channel":"a","offset":18446744073709551616}}', "range"),
        ('{"id":1,"subscribe":{"channel":"a","flag":9223372036854775808}}', "range"),
        ('{"id":1,"rpc":{"data":NaN}}', "not JSON"),
        ('{"id":1,"rpc":{"data":-Infinity}}', "not JSON"),
        ('{"id":1,"rpc":{"data":1e400}}', "double"),
        (f'{{"id":1,"rpc":{{"data":{"1" * 5000}}}}}', "not JSON"),
        (f'{{"id":1,"rpc":{{"data":{"[" * 100_000}}}}}', "not JSON"),
        (f'{{"id":1,"nosuch":{"[" * 300 + "]" * 300}}}', "not JSON"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_bad_frames(frame: str | bytes, reason: str) -> None:
    """What is not JSON, or has a field of another type, costs the connection."""
    with pytest.raises(BadFrameError, match=reason):
        JSON.decode(frame)


@pytest.mark.parametrize(
    "frame",
    [
        '{"id":1,"rpc":{"method":"m"}}',
        b'{"id":1,"rpc":{"method":"m"}}',
        '{"id":1,"rpc":{"method":"m"}}\n',
        ' { "rpc" : { "method" : "\\u006d" } , "id" : 1 }\r',
        '{"id":1,"rpc":{"method":"m","new":[]},"new":{"a":1},"connect":null}',
        '{"id":1,"id":1,"rpc":{"method":"k"},"rpc":{"method":"k","method":"m"}}',
    ],
)
def test_frames_of_one_command(frame: str | bytes) -> None:
    """Space, a line break at the end, unknown fields, nulls and repeated fields, of which the last counts, are read."""
    assert JSON.decode(frame) == [Command(1, "rpc", {"method": "m"})]


def test_null_is_nothing() -> None:
    """A field that is null is none, also within a map; null as the application's data is data."""
    frame = '{"id":1,"connect":{"token":null,"headers":{"a":null,"b":""},"data":null,"subs":{}}}'
    assert JSON.decode(frame) == [Command(1, "connect", {"headers": {"b": ""}, "data": b"null"})]


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ('{"n": [1, 2.50, "é", "\\u00e9", null]}', '{"n":[1,2.5,"é","é",null]}'),
        ("12345678901234567890123456789", "12345678901234567890123456789"),
        ("0.1", "0.1"),
        ("1E5", "100000.0"),
        ('"\\ud83d\\ude00"', '"😀"'),
        ('"a\\nb\\u2028\\u0000"', '"a\\nb\u2028\\u0000"'),
        ('""', '""'),
        ("0", "0"),
        ("false", "false"),
        ("[" * DEEP + "]" * DEEP, "[" * DEEP + "]" * DEEP),
    ],
    ids=lambda value: value[:30],
)
def test_data_is_compact(sent: str, read: str) -> None:
    """The application's data is the same value in compact JSON, in UTF-8."""
    assert published(sent).decode() == read


@pytest.mark.parametrize(
    ("sent", "embedded"),
    [
        (r'"\ud800"', r'"\ufffd"'),
        (r'"\uDC00\uD800x"', r'"\ufffd\ufffdx"'),
        (r'"\ud83d\ud83d\ude00"', r'"\ufffd\ud83d\ude00"'),
        (r'"\\ud800 \\\ud800 \n\\"', r'"\\ud800 \\\ufffd \n\\"'),
        (r'{"\ud800":"\"\udfff\""}', r'{"\ufffd":"\"\ufffd\""}'),
    ],
)
def test_lone_surrogates(sent: str, embedded: str) -> None:
    """Half a pair, which a browser escapes and UTF-8 cannot encode, is replaced; pairs and backslashes stay."""
    assert JSON.embed(sent, is_json=True).decode() == embedded
    assert json.loads(published(sent)) == json.loads(embedded)


@pytest.mark.parametrize(
    ("data", "is_json", "embedded"),
    [
        ('{"n": 1}', True, '{"n": 1}'),
        ('{"n": 1}', False, '{"n": 1}'),
        (b'{"n": 1}', True, '{"n": 1}'),
        ("1e400", False, "1e400"),
        ('{\r\n"n":\n1}', True, '{  "n": 1}'),
        ("hello", False, '"hello"'),
        ("two\nlines", False, '"two\\nlines"'),
        ("", False, '""'),
        ("NaN", True, '"NaN"'),
        ('{"a":1},"offset":9', True, '"{\\"a\\":1},\\"offset\\":9"'),
        ("\\u", False, '"\\\\u"'),
        ("\ud800", False, '"?"'),
        (b"\x00\xff", False, '"AP8="'),
        (b"{}", False, '"e30="'),
        (b"\xff", True, '"\ufffd"'),
    ],
)
def test_embedded_data(data: str | bytes, is_json: bool, embedded: str) -> None:
    """JSON goes in as it is, in one line; other texts as strings, bytes in base64; and no mark is trusted."""
    assert JSON.embed(data, is_json).decode() == embedded


def test_deep_and_long_texts_are_strings() -> None:
    """A text that clients could not parse is embedded as a string, which they can."""
    for text in ("[" * 300 + "]" * 300, "1" * 5000):
        assert json.loads(JSON.embed(text, is_json=True)) == text


def test_publications() -> None:
    """The members are those of the reference server; base64 is stated by a tag, beside others."""
    info = {"user": "", "client": "c", "chan_info": b"[1]"}
    assert JSON.publication('a"', "x", is_json=False, offset=None) == ('{"push":{"channel":"a\\"","pub":{"data":"x"}}}')
    assert JSON.publication("a", b"\xff", is_json=False, offset=7, info=info, tags={"k": "v"}) == (
        '{"push":{"channel":"a","pub":{"data":"/w==","info":{"user":"","client":"c","chan_info":[1]},"offset":7,'
        '"tags":{"k":"v","encoding":"base64"}}}}'
    )
    assert JSON.publication_body(b"\xff", is_json=False, offset=0)["tags"] == {"encoding": "base64"}


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (JSON.ping, "{}"),
        (JSON.reply(2, "publish", {}), '{"id":2,"publish":{}}'),
        (JSON.reply(2, "rpc", {"data": b"[1]"}), '{"id":2,"rpc":{"data":[1]}}'),
        (JSON.reply(2, "rpc", {"data": b""}), '{"id":2,"rpc":{}}'),
        (JSON.reply(2, "presence", {}), '{"id":2,"presence":{"presence":{}}}'),
        (JSON.reply(2, "presence_stats", {}), '{"id":2,"presence_stats":{"num_clients":0,"num_users":0}}'),
        (JSON.reply(2, "history", {}), '{"id":2,"history":{"publications":[],"epoch":"","offset":0}}'),
        (
            JSON.reply(2, "history", {"publications": [{}], "epoch": "e", "offset": 1}),
            '{"id":2,"history":{"publications":[{"data":null}],"epoch":"e","offset":1}}',
        ),
        (
            JSON.reply(2, "connect", {"client": "c", "ping": 0, "pong": False, "subs": {"a": {}}, "data": None}),
            '{"id":2,"connect":{"client":"c","subs":{"a":{}}}}',
        ),
        (JSON.error(2, 100, "é", temporary=True), '{"id":2,"error":{"code":100,"message":"é","temporary":true}}'),
        (JSON.error(2, 100, "\ud800", temporary=False), '{"id":2,"error":{"code":100,"message":"?"}}'),
        (JSON.push("", "message", {"data": b"1"}), '{"push":{"message":{"data":1}}}'),
        (
            JSON.push("a", "join", {"info": None}),
            '{"push":{"channel":"a","join":{"info":{"user":"","client":""}}}}',
        ),
        (
            JSON.push("a", "unsubscribe", {"code": 2500}),
            '{"push":{"channel":"a","unsubscribe":{"code":2500,"reason":""}}}',
        ),
        (JSON.join(["{}", '{"id":2,"publish":{}}']), '{}\n{"id":2,"publish":{}}'),
    ],
    ids=lambda value: str(value)[:50],
)
def test_replies_and_pushes(frame: Any, text: str) -> None:
    """What holds nothing is left out, but where an SDK reads it without a default."""
    assert frame == text
