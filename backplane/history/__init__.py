"""Channels with a history: what was missed is given back, in order and once, or a gap is reported."""
