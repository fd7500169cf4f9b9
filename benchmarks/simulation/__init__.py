"""Reconnect storms by simulation: clients are counts in steps of a tenth of a second, so a million take seconds.

`python -m benchmarks.simulation --help` runs it; docs/operations/scale.md shows and explains its table.
"""
