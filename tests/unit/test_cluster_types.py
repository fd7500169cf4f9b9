"""`backplane.cluster_types`: workers and what they answered."""

from __future__ import annotations

from backplane.cluster_types import Answers, Worker


def test_workers_are_equal_by_their_id() -> None:
    """The same worker at two moments is one key."""
    first, later = Worker(id="a", connections=1), Worker(id="a", connections=2, is_alive=False)
    assert (first == later, len({first, later, Worker(id="b")})) == (True, 2)


def test_complete() -> None:
    """Answers are complete where every worker answered, and none with an error."""
    worker = Worker(id="a")
    assert Answers(by_worker={worker: 1}).complete
    assert not Answers(by_worker={worker: 1}, missing=[Worker(id="b")]).complete
    assert not Answers(errors={worker: "no handler"}).complete
