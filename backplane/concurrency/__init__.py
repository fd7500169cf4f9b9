"""Event loops, tasks, threads and time limits: what asyncio leaves open. Knows no message."""
