"""Parts measured by themselves, in CPU time, beside a bare loop. Comparisons are interleaved within one run."""
