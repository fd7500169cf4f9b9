"""What a worker logs: the names of the events, their fields, bursts as one line, and the last events in memory."""
