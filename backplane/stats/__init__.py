"""The figures of all workers together, sent only while a process watches them, and lists of channels and clients."""
