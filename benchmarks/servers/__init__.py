"""The applications that are measured: backplane, the floors below it, and one with faults planted on purpose."""
