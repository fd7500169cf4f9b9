"""The contract on `postgres://`, against real servers."""

import pytest

from backplane.testing import BroadcasterConformance, HistoryConformance, PresenceConformance
from backplane.testing.fault_conformance import Strip
from backplane.testing.proxy import PassingWay
from tests.brokers.broker import Broker
from tests.brokers.postgres import DURABLE, PostgresConfig
from tests.conftest import StartPostgres

_TLS = PostgresConfig(tls=True, login="alice:secret", sql=("CREATE ROLE alice LOGIN PASSWORD 'secret'",))


class TestPostgres(BroadcasterConformance):
    """The whole contract."""

    @pytest.fixture
    def url(self, postgres_broker: Broker) -> str:
        """A server that other tests use too."""
        return postgres_broker.url

    @pytest.fixture
    def strip_tls(self, private_postgres: StartPostgres) -> tuple[str, Strip]:
        """A server with TLS, and an answer to the client's first message as from one without."""
        return private_postgres(_TLS).url, _answer_in_clear


@pytest.mark.full
class TestPostgresDurable(BroadcasterConformance):
    """The whole contract, with messages in a table."""

    one_loop = True

    @pytest.fixture
    def url(self, private_postgres: StartPostgres) -> str:
        """A server that has the tables."""
        return f"{private_postgres(DURABLE).url}?durable=true"


@pytest.mark.full
class TestPostgresPresence(PresenceConformance):
    """Presence."""

    one_loop = True

    @pytest.fixture
    def url(self, postgres_broker: Broker) -> str:
        """A server that other tests use too."""
        return f"{postgres_broker.url}?notify=presence"


def _answer_in_clear(way: PassingWay, data: bytes) -> bytes:
    return data if way == "to_broker" else b"N"


@pytest.mark.full
class TestPostgresHistory(HistoryConformance):
    """History, with messages in a table."""

    one_loop = True

    @pytest.fixture
    def url(self, private_postgres: StartPostgres) -> str:
        """A server that has the tables."""
        return f"{private_postgres(DURABLE).url}?durable=true"
