"""The rules of a verdict: each takes what is known, and returns what it finds."""
