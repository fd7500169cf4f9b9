"""`backplane.adapters.shared.frame_buffer`: an incomplete frame is kept until the rest of it is received."""

from __future__ import annotations

from backplane.adapters.shared.frame_buffer import FrameBuffer


def test_nothing_is_returned_before_the_frame_can_be_complete() -> None:
    """The pieces of a frame are returned in one, when as many bytes were received as were missing at least."""
    buffer = FrameBuffer()
    assert buffer.take(b"whole") == b"whole"
    buffer.keep(b"beg", 4)
    assert [buffer.take(b"in"), buffer.take(b"-"), buffer.take(b"end")] == [b"", b"", b"begin-end"]
    assert buffer.take(b"next") == b"next"


def test_it_is_empty_between_two_frames() -> None:
    """A stream ends inside a frame while the buffer is not empty."""
    buffer = FrameBuffer()
    assert buffer.is_empty
    buffer.keep(b"begin", 1)
    assert not buffer.is_empty
    buffer.take(b"-end")
    assert buffer.is_empty
