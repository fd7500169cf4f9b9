"""`backplane.control.client_index`: which clients a command concerns."""

from __future__ import annotations

import time
from typing import Any

import pytest

from backplane.control.client_index import ClientIndex
from backplane.control.messages import Selector
from tests.unit.control.world import ids
from tests.unit.doubles import FakeClient


def index_of(*clients: FakeClient) -> ClientIndex:
    """Return an index with these clients."""
    index = ClientIndex()
    for client in clients:
        index.add(client, client.user)
    return index


CLIENTS = [
    FakeClient("01", "ada", "a"),
    FakeClient("02", "ada", "a", "b"),
    FakeClient("03", "bob", "b"),
    FakeClient("04", None, "a"),
]


@pytest.mark.parametrize(
    ("given", "selected"),
    [
        ({"user": "ada"}, ["01", "02"]),
        ({"user": "carl"}, []),
        ({"user": ""}, []),
        ({"channel": "a"}, ["01", "02", "04"]),
        ({"connection": "04"}, ["04"]),
        ({"connection": "05"}, []),
        ({"connection": ""}, []),
        ({"user": "ada", "channel": "b"}, ["02"]),
        ({"user": "ada", "connection": "03"}, []),
        ({"user": "bob", "connection": "03"}, ["03"]),
        ({"connection": "03", "channel": "a"}, []),
        ({"user": "ada", "exclude": "02"}, ["01"]),
        ({"user": "ada", "exclude": "03"}, ["01", "02"]),
        ({"connection": "01", "exclude": "01"}, []),
        ({}, []),
        ({"exclude": "01"}, []),
        ({"worker": "0000000000000001"}, []),
        ({"opened_before": 9e9}, []),
    ],
)
def test_what_is_selected(given: dict[str, Any], selected: list[str]) -> None:
    """All that is given must apply, and nothing is selected where nothing is named."""
    index = index_of(*CLIENTS)
    assert ids(index.select(Selector(**given))) == selected
    assert [ids(clients) for clients in index.select_in_slices(Selector(**given), 100)] in ([selected], [])


def test_slices() -> None:
    """Each slice is selected when it is asked for, among the clients that were there at first."""
    clients = [FakeClient(f"{number:02}", None, "a") for number in range(5)]
    index = index_of(*clients)
    slices = index.select_in_slices(Selector(channel="a"), 2)
    assert ids(next(slices)) == ["00", "01"]
    clients[2].is_over = True
    index.add(FakeClient("99", None, "a"), None)
    assert [ids(selected) for selected in slices] == [["03"], ["04"]]


def test_a_client_that_ends_is_not_selected() -> None:
    """One that is being closed already is not among them, though its handler still runs."""
    ending = FakeClient("01", "ada")
    index = index_of(ending, FakeClient("02", "ada"))
    ending.is_over = True
    assert ids(index.select(Selector(user="ada"))) == ["02"]


def test_clients_leave_nothing() -> None:
    """The index holds exactly the clients that are there; removing one twice, or one without a user, is no error."""
    index = index_of(*CLIENTS)
    assert len(index) == 4
    assert (index.user_of("01"), index.user_of("04"), index.user_of("99")) == ("ada", None, None)
    index.discard(CLIENTS[0])
    assert ids(index.select(Selector(user="ada"))) == ["02"]
    for client in CLIENTS * 2:
        index.discard(client)
    assert len(index) == 0
    assert vars(index) == vars(ClientIndex())


def test_clients_that_were_opened_before_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the moment of their handshakes; of those of the same moment by their ids, so that one of two stays."""
    index, moments = ClientIndex(), {"01": 10.0, "02": 11.0, "03": 11.0, "04": 12.0}
    for client_id, moment in moments.items():
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        index.add(FakeClient(client_id, "ada"), "ada")
    assert [index.opened_at(client_id) for client_id in moments] == list(moments.values())
    assert index.opened_at("99") is None
    older = {
        client_id: ids(index.select(Selector(user="ada", exclude=client_id, opened_before=moment)))
        for client_id, moment in moments.items()
    }
    assert older == {"01": [], "02": ["01"], "03": ["01", "02"], "04": ["01", "02", "03"]}
    assert ids(index.select(Selector(user="ada", opened_before=11.0))) == ["01"]


def test_a_client_that_names_its_user_later() -> None:
    """It is found by its new user, and no more by the old one; what it was otherwise stays."""
    client, other = FakeClient("01", None, "a"), FakeClient("02", "ada", "a")
    index = index_of(client, other)
    opened_at = index.opened_at("01")
    index.identify(client, "ada")
    index.identify(other, "bob")
    index.identify(FakeClient("03", None), "ada")
    assert ids(index.select(Selector(user="ada"))) == ["01"]
    assert ids(index.select(Selector(user="bob"))) == ["02"]
    assert (index.user_of("01"), index.opened_at("01"), len(index)) == ("ada", opened_at, 2)
