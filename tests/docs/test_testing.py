"""docs/guides/testing.md: the test files of the page pass in another project."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.docs.pages import Page

if TYPE_CHECKING:
    from pathlib import Path

    from tests.brokers.broker import Broker

PAGE = Page("guides/testing.md")
MODULES = {"application": "rooms", "served": "served"}
TESTS = {"client": 2, "refused": 1, "subscription": 1, "gap": 1, "resume": 1, "workers": 1, "proxy": 1, "repair": 1}


def test_every_python_block_has_a_name_and_a_test() -> None:
    """No Python of the page is without a name, and none of the tests below has lost its example."""
    names = [found for found, _ in PAGE.examples()]
    assert PAGE.text.count("```python") == len(names)
    assert sorted(map(str, names)) == sorted({*MODULES, *TESTS})


def test_tests_of_the_page_pass(tmp_path: Path, redis_broker: Broker) -> None:
    """The test files of the page pass in another project, with warnings as errors, and none of them is skipped."""
    for example, module in MODULES.items():
        (tmp_path / f"{module}.py").write_text(PAGE.example(example), encoding="utf-8")
    for name in TESTS:
        (tmp_path / f"test_{name}.py").write_text(PAGE.example(name), encoding="utf-8")
    backend = "import pytest\n\n@pytest.fixture\ndef anyio_backend() -> str:\n    return 'asyncio'\n"
    (tmp_path / "conftest.py").write_text(backend, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-W", "error"],
        cwd=tmp_path,
        env={**os.environ, "REDIS_URL": redis_broker.url, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert {name: done.stdout.count(f"test_{name}.py::") for name in TESTS} == TESTS
    assert f"{sum(TESTS.values())} passed" in done.stdout
    assert "skipped" not in done.stdout
