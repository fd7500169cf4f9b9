"""One worker's link to its broker: opened, checked and rebuilt, whatever the adapter. Knows no client."""
