"""Benchmarks of backplane: `python -m benchmarks micro`."""
