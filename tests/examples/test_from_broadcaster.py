"""examples/from_broadcaster.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.examples.site import SECONDS

if TYPE_CHECKING:
    from tests.examples.conftest import Serve


def test_everybody_hears_what_one_says(serve: Serve) -> None:
    """As in the original, what one says is heard by all, the one who said it included."""
    site = serve("from_broadcaster")
    with site.connect("/") as one, site.connect("/") as other:
        one.send("hello")
        assert [client.recv(timeout=SECONDS) for client in (one, other)] == ["hello", "hello"]
