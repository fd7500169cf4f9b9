"""`backplane.statistics`: every count has a name and words."""

from __future__ import annotations

import inspect
import re

import pytest

from backplane.close_codes import CloseCode
from backplane.statistics import Statistics
from tests.unit.doubles import counted


@pytest.mark.parametrize("code", CloseCode)
def test_every_close_code_is_counted(code: CloseCode) -> None:
    """Each code this package closes with has a count of its own."""
    statistics = Statistics()
    statistics.count_close(code)
    assert counted(statistics) == {f"closed_{code.name.lower()}": 1}


def test_code_of_the_application() -> None:
    """A code this package does not know is counted too."""
    statistics = Statistics()
    for code in (4999, 3000):
        statistics.count_close(code)
    assert counted(statistics) == {"closed_other": 2}


def test_every_count_is_documented() -> None:
    """The words of the class name each count once, and no other."""
    documented = re.findall(r"^    (\w+): ", inspect.getdoc(Statistics) or "", re.MULTILINE)
    assert sorted(documented) == sorted(Statistics().as_dict())
