"""`amqp://...?durable=true` under load: connections are killed one after another."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from tests.brokers.rabbitmq import RabbitProcess
from tests.chaos.workload import QUICK, running_workload

if TYPE_CHECKING:
    from tests.brokers.broker import Broker

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(170)]

# A publish without an outage is confirmed, however slow this machine is.
_SETTINGS: Final = replace(QUICK, max_backoff_seconds=0.1, publish_timeout_seconds=60)
# Run in the server: a call of rabbitmqctl takes a second. Of the connections of this test one is killed at random, with
# what the server has not read of it, until so many are killed.
_KILL: Final = """
    Name = {{<<"connection_name">>, longstr, <<"{name}">>}},
    Is_own = fun(P) -> case catch rabbit_reader:info(P, [client_properties]) of
        [{{_, Properties}}] -> lists:member(Name, Properties);
        _ -> false
    end end,
    Own = fun() -> lists:filter(Is_own, rabbit_networking:local_connections()) end,
    Kill = fun Next(0) -> killed; Next(Left) -> timer:sleep(150), case Own() of
        [] -> Next(Left);
        Found -> exit(lists:nth(rand:uniform(length(Found)), Found), kill), Next(Left - 1)
    end end,
    Kill({kills}).
"""


@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.full)])
async def test_killed_connections(kills: int, amqp_broker: Broker) -> None:
    """No message is lost, none comes twice, the order of each publisher stays, and there is no gap."""
    if not isinstance(amqp_broker, RabbitProcess):
        pytest.skip("this needs rabbitmqctl of the server")
    name = f"chaos-{secrets.token_hex(4)}"
    url = f"{amqp_broker.own_url}&durable=true&connection_name={name}&connect_timeout_seconds=60"
    async with running_workload(url, settings=_SETTINGS, lossless=True) as workload:
        done = await asyncio.to_thread(amqp_broker.control, "eval", _KILL.format(name=name, kills=kills))
        assert done.strip() == "killed"
        await workload.recovered()
    result = workload.check()
    assert (result.faults, result.gaps, result.lost, result.twice, result.disordered) == ([], 0, 0, 0, 0)
    assert sum(len(participant.degraded_at) for participant in workload.participants) > kills // 10
