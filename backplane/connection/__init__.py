"""One WebSocket client: what it receives, sends and may do, and how it ends. Knows no broker and no web framework."""
