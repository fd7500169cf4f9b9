"""`benchmarks.micro.excludes`: excludes in batches beside the same batches without them."""

from __future__ import annotations

import pytest

from benchmarks.micro import excludes


@pytest.mark.parametrize("messages", [1, 4])
def test_each_kind_is_measured(messages: int) -> None:
    """Every kind of batch is measured in every round, beside the one without excludes."""
    figures = excludes.run(10, 3, messages)
    assert [len(figure.microseconds) for figure in figures] == [3, 3, 3]
    assert figures[0].name == "floor: without exclude"
