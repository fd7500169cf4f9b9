"""The hooks of the conformance suite: each is implemented on a real broker; a suite without it states the reason."""

import inspect

import pytest

from backplane.testing.fault_conformance import FaultConformance
from tests.conformance import test_kafka, test_nats, test_redis

HOOKS = ("take_away", "crowded", "fail_over", "strip_tls")
SUITES = (test_redis.TestRedis, test_redis.TestRedisSentinel, test_nats.TestNats, test_kafka.TestKafka)


def is_given(suite: type[FaultConformance], hook: str) -> bool:
    """Whether the hook does not skip its test."""
    return "pytest.skip(" not in inspect.getsource(getattr(suite, hook)._get_wrapped_function())


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_is_given_or_explained(hook: str) -> None:
    """Each suite on a broker overrides each hook, and at least one of them lets its test run."""
    assert all(getattr(suite, hook) is not getattr(FaultConformance, hook) for suite in SUITES)
    assert any(is_given(suite, hook) for suite in SUITES)
