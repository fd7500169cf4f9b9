"""Publishing from synchronous code: through the worker's own event loop, or through a thread with one of its own."""
