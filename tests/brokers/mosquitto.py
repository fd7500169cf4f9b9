"""Mosquitto for tests, an MQTT broker: the machine's own, installed if permitted."""

from __future__ import annotations

import shutil
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.brokers.broker import BrokerMissingError, ProcessBroker
from tests.brokers.process import install

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["MosquittoProcess"]

_FOLDERS = "/usr/sbin:/usr/local/sbin"


class MosquittoProcess(ProcessBroker):
    """A Mosquitto with a configuration file.

    Args:
        folder: An empty folder.

    Raises:
        BrokerMissingError: This machine has none.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path=_FOLDERS) or install("mosquitto")
        if program is None:
            raise BrokerMissingError("no mosquitto")
        self._program = program
        self._file = folder / "mosquitto.conf"
        self._file.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\n")
        self.url = f"mqtt://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        """Return the command."""
        return [self._program, "-c", str(self._file)]

    def answers(self) -> bool:
        """Whether it accepts connections."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False
