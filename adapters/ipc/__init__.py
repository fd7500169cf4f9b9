"""`ipc://name`: the processes of one host, joined without a broker; see `broadcaster.py`."""

from backplane.adapters.ipc.broadcaster import IpcBroadcaster, IpcOptions

__all__ = ["IpcBroadcaster", "IpcOptions"]
