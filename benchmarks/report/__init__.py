"""How a result is shown: a table, a page with plots, claims, and what changed since another result."""
