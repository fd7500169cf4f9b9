"""Servers that offer the direct lane (`backplane.lane`): a Uvicorn protocol and a Gunicorn worker, both optional."""
