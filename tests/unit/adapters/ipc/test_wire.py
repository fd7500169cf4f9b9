"""Frames, without I/O."""

from __future__ import annotations

import random

from backplane.adapters.ipc import wire


def test_frames_survive_any_cut() -> None:
    """The same frames result, whatever pieces the bytes arrive in."""
    chance = random.Random(1)
    frames = [
        (chance.randrange(10), bytes(chance.randrange(5)), chance.randbytes(chance.choice([0, 1, 100, 5000])))
        for _ in range(200)
    ]
    stream = b"".join(wire.frame(*each) for each in frames)
    for largest in (1, 2, 8, 1000, 1_000_000):
        decoder, out, offset = wire.Decoder(5000), list[tuple[int, bytes, bytes]](), 0
        while offset < len(stream):
            size = chance.randint(1, largest)
            out += decoder.feed(stream[offset : offset + size])
            offset += size
        assert out == frames
        assert not decoder.inside_frame


def test_a_decoder_knows_when_it_is_inside_a_frame() -> None:
    """A decoder is between two frames, or inside one."""
    decoder = wire.Decoder(100)
    whole = wire.frame(wire.MESSAGE, b"a", b"payload")
    assert list(decoder.feed(whole + whole[:3])) == [(wire.MESSAGE, b"a", b"payload")]
    assert decoder.inside_frame
    assert list(decoder.feed(whole[3:])) == [(wire.MESSAGE, b"a", b"payload")]
    assert not decoder.inside_frame
