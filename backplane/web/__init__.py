"""The edge: Starlette's WebSocket, handshake and event streams. The only room that imports the web framework."""
