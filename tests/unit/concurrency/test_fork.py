"""`backplane.concurrency.fork`: a forked child closes what it inherits (each adapter: integration/test_sync.py)."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import asyncio, os, resource, socket, stat, sys
{loop}
from backplane.concurrency.fork import close_in_children

def is_socket(descriptor):
    return stat.S_ISSOCK(os.fstat(descriptor).st_mode)

def in_child(check):
    if not (pid := os.fork()):
        code = 1
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

async def main():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    _, writer = await asyncio.open_connection(sock=ours)
    descriptor = writer.transport.get_extra_info("socket").fileno()
    kept, other = socket.socketpair()
    close_in_children(kept)
    close_in_children(writer, writer.transport)

    assert in_child(lambda: not is_socket(descriptor) and not is_socket(kept.fileno()) and is_socket(other.fileno()))
    writer.write(b"the parent goes on")
    await writer.drain()
    theirs.setblocking(False)
    assert await asyncio.get_running_loop().sock_recv(theirs, 100) == b"the parent goes on"
    kept.send(b"x")
    assert other.recv(100) == b"x"

    # The same where the limit of open files is reached.
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    many = []
    try:
        while True:
            many.append(os.dup(0))
    except OSError:
        pass
    assert in_child(lambda: not is_socket(descriptor) and not is_socket(kept.fileno()) and is_socket(other.fileno()))
    for number in many:
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    # A child that goes on running does not keep the connection open.
    read, write = os.pipe()
    if not (pid := os.fork()):
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    writer.transport.abort()
    await asyncio.sleep(0)
    while writer.transport.get_extra_info("socket").fileno() >= 0:
        await asyncio.sleep(0)
    theirs.settimeout(20)
    assert theirs.recv(100) == b""

    # A file that was opened since under the same number is not closed.
    number = kept.fileno()
    kept.close()
    os.dup2(other.fileno(), number)
    assert in_child(lambda: is_socket(number))
    os.close(write)
    os.waitpid(pid, 0)

asyncio.run(main())
"""


def check(loop: str) -> None:
    """Run the script to its end."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("{loop}", loop)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_child_holds_no_connection() -> None:
    """A child closes every connection, the parent goes on using them, and they end when the parent closes them."""
    check("")


def test_a_child_holds_no_connection_of_uvloop() -> None:
    """The same holds where the descriptor belongs to the C code of uvloop."""
    check("import uvloop; uvloop.install()")
