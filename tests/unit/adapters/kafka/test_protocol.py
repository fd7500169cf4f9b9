"""Decoding of answers that are malformed."""

# pyright: reportPrivateUsage=false, reportMissingTypeStubs=false

from __future__ import annotations

import struct
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from backplane.adapters.kafka import protocol


@given(data=st.binary(max_size=200), version=st.sampled_from(["_MetadataResponseV10", "_FetchResponseV13"]))
@settings(max_examples=1000, deadline=None)
def test_a_malformed_answer_is_an_error_at_once(data: bytes, version: str) -> None:
    """Lengths that are negative, huge or past the end raise; no memory is reserved for a claimed length."""
    with suppress(ValueError, UnicodeDecodeError, struct.error):
        getattr(protocol, version).decode(data)
