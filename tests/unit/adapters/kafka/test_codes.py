"""What Kafka's error codes mean for a request."""

from __future__ import annotations

import pytest

from backplane.adapters.kafka.codes import Meaning, error_name, meaning


@pytest.mark.parametrize(("code", "expected"), [
    (0, Meaning.OK), (46, Meaning.OK), (19, Meaning.TRANSIENT), (7, Meaning.MAYBE_STORED), (6, Meaning.MOVED),
    (10, Meaning.INVALID_RECORD), (29, Meaning.FORBIDDEN), (17, Meaning.REFUSED), (45, Meaning.UNKNOWN_PRODUCER),
    (1, Meaning.OUT_OF_RANGE), (2, Meaning.CORRUPT), (-1, Meaning.UNKNOWN), (9999, Meaning.UNKNOWN),
])  # fmt: skip
def test_each_code_has_one_meaning(code: int, expected: Meaning) -> None:
    """A code that is not listed is neither a success nor a refusal."""
    assert meaning(code) is expected


@pytest.mark.parametrize(("code", "name"), [
    (0, "no error"), (3, "UnknownTopicOrPartitionError (3)"), (100, "UnknownTopicId (100)"),
    (9999, "UnknownError (9999)"),
])  # fmt: skip
def test_a_code_is_shown_with_its_name(code: int, name: str) -> None:
    """The name is aiokafka's, or one for a code that aiokafka does not know."""
    assert error_name(code) == name
