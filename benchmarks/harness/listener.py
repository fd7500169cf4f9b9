"""The audience in one process: it reads with as little work as Python allows, and counts when no more arrives.

Reads go one after the other into one piece of memory, so that thousands of frames lie in a row there and numpy reads
them as a table. That holds while every frame has one size and a read ends with a frame; where it does not, the frames
of that read are parsed one by one. Of long frames only the beginning is read: the system drops the rest without
copying it, because copying would cost a client half of what it measures.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.harness.sockets import Client, connect
from benchmarks.harness.text import HEADER_BYTES, channel_name, read, record_type

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from benchmarks.harness.tally import Counted, Tally
    from benchmarks.harness.websocket import Dialect

__all__ = ["Listener"]

_READ_BYTES: Final = 65536
_ARENA_BYTES: Final = 8 * 1024 * 1024
_LONG_BYTES: Final = 16 * 1024
# Counting takes a tenth of a millisecond, which a socket that is read after it would show as latency.
_QUIET_SECONDS: Final = 0.002


class Listener:
    """Receives on many sockets.

    Args:
        run: The mark of this run's texts.
        epoch: The run's zero, on the monotonic clock, in nanoseconds.
        tally: What counts.
        deflate: Whether to offer compression, whose frames have all sizes and are parsed one by one.
        addresses: Over how many addresses the clients are spread.

    Attributes:
        clients: The sockets.
        tally: As above.
        poll: What waits for them.
        frame_bytes: Size of a frame of this run with its header, once one has arrived; 0 with compression.
    """

    def __init__(self, run: str, epoch: int, tally: Tally, *, deflate: bool, addresses: int = 1) -> None:
        self._deflate = deflate
        self._addresses = addresses
        self.clients: list[Client] = []
        self.tally = tally
        self.poll = select.epoll()
        self._run = run.encode()
        self._epoch = epoch
        self._by_descriptor: dict[int, tuple[int, Callable[[memoryview], int]]] = {}
        self._with_rest: set[int] = set()
        # One read and the rest of a frame may exceed the limit.
        self._memory = bytearray(_ARENA_BYTES + 4 * _READ_BYTES)
        self._view = memoryview(self._memory)
        self._used = 0
        self._indexes: list[int] = []
        self._sizes: list[int] = []
        self._times: list[int] = []
        self.frame_bytes: int = 0
        # The bytes kept of a frame. Before the first frame its size is unknown, and no read is even.
        self._unit = 1 << 62
        self._offset = 0
        self._head = b""
        self._read_bytes = _READ_BYTES

    def open(
        self, port: int, channels: Sequence[int], dialect: Dialect, *, at_once: int = 64, first: int = 0, may_fail: bool
    ) -> list[Client]:
        """Connect one client to each of `channels` and listen.

        `first` is as `Tally.add_connections` takes it, and `may_fail` as `connect` does.
        """
        paths = [dialect.listen_path.format(channel=channel_name(channel)) for channel in channels]
        opened = connect(
            port,
            paths,
            dialect,
            at_once=at_once,
            deflate=self._deflate,
            addresses=self._addresses,
            may_fail=may_fail,
        )
        self.tally.add_connections([channels[client.number] for client in opened], first=first)
        for client in opened:
            index = len(self.clients)
            self.clients.append(client)
            client.sock.setblocking(False)
            self._by_descriptor[client.sock.fileno()] = (index, client.sock.recv_into)
            self.poll.register(client.sock, select.EPOLLIN)
            if client.rest:
                self._parse(index, b"", self._now())
        gc.collect()
        gc.freeze()
        return opened

    def close(self, indexes: Sequence[int]) -> None:
        """Close some without a close frame."""
        for index in indexes:
            client = self.clients[index]
            if client.closed is None:
                client.closed = -1
                self._forget(client)

    def listen(self, timeout_seconds: float) -> bool:
        """Wait for what arrives and read it; returns whether another descriptor on `poll` is ready."""
        ready = self.poll.poll(_QUIET_SECONDS if self._indexes else timeout_seconds)
        if not ready:
            self.count_reads()
            return False
        return self._read(ready)

    def catch_up(self) -> None:
        """Read what has arrived by now: a client that does not answer pings for long is closed."""
        while (ready := self.poll.poll(0)) and not self._read(ready):
            pass
        self.count_reads()

    def _read(self, ready: Sequence[tuple[int, int]]) -> bool:
        """Read from the descriptors that are ready; returns whether another one is among them."""
        other = False
        view, by_descriptor = self._view, self._by_descriptor
        for descriptor, _ in ready:
            found = by_descriptor.get(descriptor)
            if found is None:
                other = True
                continue
            index, receive = found
            if self._unit < self.frame_bytes:
                self._read_long(index)
                continue
            used = self._used
            try:
                size = receive(view[used : used + self._read_bytes])
            except BlockingIOError:
                continue
            except OSError:
                size = 0
            now = time.monotonic_ns()
            if not size:
                self._end(index)
            elif size % self._unit or index in self._with_rest:
                self._read_uneven(index, size, now)
            else:
                self._keep(index, size, now)
        return other

    def count_reads(self) -> None:
        """Count what was read."""
        if not self._indexes:
            return
        counts = np.array(self._sizes) // self._unit
        rows = np.frombuffer(self._memory, record_type(self._unit, self._offset), int(counts.sum()))
        connections = np.repeat(np.array(self._indexes, np.int64), counts)
        received = np.repeat((np.array(self._times, np.int64) - self._epoch) // 1000, counts)
        head = np.frombuffer(self._head, np.uint16)[0]
        ours = (rows["head"] == head) & (rows["run"] == np.frombuffer(self._run, np.uint64)[0])
        odd = self._reads_of(set(connections[~ours].tolist())) if not ours.all() else []
        self._used = 0
        self._indexes.clear()
        self._sizes.clear()
        self._times.clear()
        if odd:
            even = ~np.isin(connections, [index for index, _, _ in odd])
            rows, connections, received = rows[even], connections[even], received[even]
        self.tally.add(read(rows, connections, received))
        for index, data, now in odd:
            self._parse(index, data, now)
            self._mark_rest(index)

    def _reads_of(self, indexes: set[int]) -> list[tuple[int, bytes, int]]:
        """Return what was read of these sockets: a ping, for example, shifts frames while the size stays even."""
        found: list[tuple[int, bytes, int]] = []
        start = 0
        for index, size, now in zip(self._indexes, self._sizes, self._times, strict=True):
            if index in indexes:
                found.append((index, bytes(self._view[start : start + size]), now))
            start += size
        return found

    def result(self) -> Counted:
        """Return what was counted."""
        self.count_reads()
        return self.tally.result()

    def closed(self) -> Counter[int]:
        """Return how many were closed, by code; 0 is an end without a close frame."""
        return Counter(client.closed for client in self.clients if client.closed is not None and client.closed >= 0)

    def _now(self) -> int:
        return time.monotonic_ns()

    def _keep(self, index: int, size: int, now: int) -> None:
        """Keep what follows `_used` where it is, for `count_reads`."""
        self._indexes.append(index)
        self._sizes.append(size)
        self._times.append(now)
        self._used += size
        if self._used > _ARENA_BYTES:
            self.count_reads()

    def _read_long(self, index: int) -> None:
        """Read one frame of this run, most of it without keeping it; everything else is parsed."""
        client, used = self.clients[index], self._used
        try:
            if not client.unread:
                sizes = (self._unit, self.frame_bytes, len(client.rest) + _READ_BYTES)
                data = client.sock.recv(min(size for size in sizes if size > len(client.rest)) - len(client.rest))
                if not data or not self._begins_long(client.rest + data):
                    return self._parse(index, data, self._now()) if data else self._end(index)
                client.rest += data
                client.unread = self.frame_bytes - len(client.rest)
            while client.unread:
                size = client.sock.recv_into(self._view[used:], min(client.unread, _READ_BYTES), socket.MSG_TRUNC)
                if not size:
                    return self._end(index)
                client.unread -= size
        except BlockingIOError:
            return None
        except OSError:
            return self._end(index)
        self._view[used : used + self._unit] = client.rest[: self._unit]
        client.rest = b""
        return self._keep(index, self._unit, self._now())

    def _begins_long(self, data: bytes) -> bool:
        """Whether `data` is the beginning of a frame of this run, as much of it as `count_reads` needs."""
        begins = data.startswith(self._head) and data.startswith(self._run, self._offset)
        return begins and self._unit <= len(data) <= self.frame_bytes

    def _read_uneven(self, index: int, size: int, now: int) -> None:
        """Take what does not end with a frame, or begins inside one."""
        client, used = self.clients[index], self._used
        data = client.rest + bytes(self._view[used : used + size])
        whole = len(data) // self._unit * self._unit
        if self._is_ours(data, whole):
            client.rest = data[whole:]
            if whole:
                self._view[used : used + whole] = data[:whole]
                self._keep(index, whole, now)
        else:
            self._parse(index, bytes(self._view[used : used + size]), now)
        self._mark_rest(index)

    def _mark_rest(self, index: int) -> None:
        if self.clients[index].rest:
            self._with_rest.add(index)
        else:
            self._with_rest.discard(index)

    def _is_ours(self, data: bytes, whole: int) -> bool:
        """Whether `data` is frames of this run, and perhaps the beginning of one more."""
        if not self.frame_bytes:
            return False
        heads = (data[at : whole : self.frame_bytes].count(self._head[at]) for at in (0, 1))
        return all(count == whole // self.frame_bytes for count in heads) and self._head.startswith(
            data[whole : whole + 2]
        )

    def _parse(self, index: int, data: bytes, now: int) -> None:
        client = self.clients[index]
        self.count_reads()  # what came before must be counted before
        texts = client.texts(data)
        ours = [text for text in texts if self._run in text]
        client.other_texts = (client.other_texts + [text for text in texts if self._run not in text])[-8:]
        if ours:
            if not self.frame_bytes and not self._deflate:
                self._learn_frame(ours[0], client.dialect.opcode)
            self._count_texts(index, ours, now)
        if client.closed is not None:
            self._forget(client)

    def _count_texts(self, index: int, texts: list[bytes], now: int) -> None:
        headers = b"".join(bytes(2) + text[(at := text.find(self._run)) : at + HEADER_BYTES] for text in texts)
        rows: NDArray[np.void] = np.frombuffer(headers, record_type(2 + HEADER_BYTES, 2))
        count = len(texts)
        self.tally.add(read(rows, np.full(count, index), np.full(count, (now - self._epoch) // 1000)))

    def _learn_frame(self, text: bytes, opcode: int) -> None:
        """Learn the size and the header of this product's frames from the first one."""
        size = len(text)
        wide = 0 if size < 126 else 2 if size < 65536 else 8
        self._head = bytes((0x80 | opcode, {0: size, 2: 126, 8: 127}[wide]))
        self.frame_bytes = self._unit = 2 + wide + size
        self._offset = 2 + wide + text.find(self._run)
        if self.frame_bytes >= _LONG_BYTES:
            self._unit = self._offset + HEADER_BYTES
        self._read_bytes = max(_READ_BYTES // self.frame_bytes, 1) * self.frame_bytes

    def _end(self, index: int) -> None:
        client = self.clients[index]
        client.closed = 0 if client.closed is None else client.closed
        self._forget(client)

    def _forget(self, client: Client) -> None:
        self._by_descriptor.pop(client.sock.fileno(), None)
        client.sock.close()
