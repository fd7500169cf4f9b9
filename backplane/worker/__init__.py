"""One worker process: what exists between the start and the stop of a `Backplane`, its health and its end."""
