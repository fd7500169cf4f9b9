"""examples/endpoint.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.examples.site import SECONDS

if TYPE_CHECKING:
    from tests.examples.conftest import Serve


def test_others_hear_what_one_says(serve: Serve) -> None:
    """A client is greeted, and hears what others of its room say, but not itself."""
    site = serve("endpoint")
    with site.connect("/rooms/a") as one, site.connect("/rooms/a") as other, site.connect("/rooms/b") as elsewhere:
        assert one.recv(timeout=SECONDS) == "welcome to a"
        assert other.recv(timeout=SECONDS) == "welcome to a"
        assert elsewhere.recv(timeout=SECONDS) == "welcome to b"

        one.send("from one")
        assert other.recv(timeout=SECONDS) == "from one"
        other.send(b"from other")
        assert one.recv(timeout=SECONDS) == b"from other"
