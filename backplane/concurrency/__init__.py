"""Event loops, tasks, threads and time limits: what asyncio lacks. Nothing here depends on messages or brokers."""
