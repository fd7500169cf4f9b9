"""Channel to subscribers, inside one process: knows neither a broker's link nor a WebSocket."""
