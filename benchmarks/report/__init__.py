"""What a person sees of a result: progress, a table, a page, and what changed since another one."""
