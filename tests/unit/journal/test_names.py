"""`backplane.journal.names`: names of channels and users in a log, as they are or as hashes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from backplane.errors import SubscribeError
from backplane.journal.events import CHANNEL_REFUSED, CLIENT_SLOW, HOOK_FAILED
from backplane.journal.journal import Journal
from backplane.journal.names import hide_names, logged, names_are_hidden, show_names
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

logger = logging.getLogger("backplane.test.names")


@pytest.fixture(autouse=True)
def _shown_afterwards() -> Iterator[None]:
    """Log names as they are again."""
    yield
    show_names()


def all_text(caplog: pytest.LogCaptureFixture) -> str:
    """Return every line with all its fields and its traceback."""
    formatter = logging.Formatter()
    return "\n".join(f"{formatter.format(record)} {vars(record)}" for record in caplog.records)


def test_names_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    """By default names are logged as they are."""
    assert not names_are_hidden()
    write(logger, CLIENT_SLOW, "slow on %(channel)r", channel="user:ada", client_key="ada")
    assert caplog.messages == ["slow on 'user:ada'"]
    assert logged("ada") == "ada"


def test_hash_in_sentence_and_fields(caplog: pytest.LogCaptureFixture) -> None:
    """A hidden name is the same hash in its field, in the sentence, and in the text of an error."""
    hide_names()
    write(
        logger,
        CLIENT_SLOW,
        "%(client_key)s is slow on %(channel)r: %(reason)s",
        channel="user:ada",
        client_key="ada",
        connection="9f2c",
        reason="the client ada, or 'user:bob', reads nothing of user:ada",
    )
    channel, key, other = logged("user:ada"), logged("ada"), logged("user:bob")
    assert caplog.messages == [
        f"{key} is slow on {channel!r}: the client {key}, or {other!r}, reads nothing of {channel}"
    ]
    (record,) = caplog.records
    assert (vars(record)["backplane.channel"], vars(record)["backplane.client_key"]) == (channel, key)
    assert vars(record)["backplane.connection"] == "9f2c"
    assert "ada" not in all_text(caplog)
    assert channel.startswith("#")
    assert len(channel) == 13


def test_names_in_errors(caplog: pytest.LogCaptureFixture) -> None:
    """Names that only an error holds are hidden too, and so is its traceback, whose place is logged."""
    hide_names()
    error = SubscribeError({"it's ada's": "no permission", "user:bob": "client's fault"})
    write(logger, CHANNEL_REFUSED, "refused: %(reason)s", channel=None, channels=2, reason=error)
    try:
        dict[str, int]()["user:ada"]
    except KeyError as raised:
        write(logger, HOOK_FAILED, "%(hook)s failed", hook="on_gap", exc_info=raised)
    text = all_text(caplog)
    assert "ada" not in text
    assert "bob" not in text
    assert "no permission" in text
    assert vars(caplog.records[1])["backplane.error"].startswith("KeyError at test_names.py:")


async def test_counts_of_bursts_hide_names(caplog: pytest.LogCaptureFixture) -> None:
    """The line that counts many events hides the names of the last; what is kept in memory has them."""
    hide_names()
    journal = Journal(burst=1)
    for _ in range(2):
        journal.log(logger, CLIENT_SLOW, "slow on %(channel)r", channel="user:ada", client_key="ada")
    journal.flush()
    assert len(caplog.records) == 2
    assert "ada" not in all_text(caplog)
    assert [entry["fields"]["client_key"] for entry in journal.recent("gaps")] == ["ada", "ada"]


def test_key_changes_the_hash() -> None:
    """With a secret the hash is another one, the same in each process that has it."""
    hide_names()
    plain = logged("ada")
    hide_names(b"a secret of sixteen bytes")
    keyed = logged("ada")
    hide_names(b"a secret of sixteen bytes")
    assert (logged("ada"), keyed != plain) == (keyed, True)
    assert logged("bob") != keyed
    assert logged("\ud800").startswith("#")
