"""The jars of an Apache Kafka broker: downloaded from Maven Central once, and cached in this repository."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from tests.brokers.broker import BrokerMissingError
from tests.brokers.process import install, locked, made

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ARCHIVE", "FORMATTED", "VERSION", "java", "kafka_jars", "prepared"]

ARCHIVE = "classes.jsa"
"""Name of the archive of the classes, which a JVM maps into memory."""
FORMATTED = "formatted"
"""Name of the folder with data that has no cluster id."""

_POM = Path(__file__).with_name("kafka-pom.xml")
_CACHE = Path(__file__).parents[2] / ".cache"

VERSION = ElementTree.parse(_POM).findtext(".//{*}kafka.version") or ""
"""Version of Kafka in the pom; the same as in docker-compose.yml."""


def java() -> str:
    """Return the path of Java, installed if permitted: as root on Debian, unless BACKPLANE_TEST_INSTALL=0.

    Raises:
        BrokerMissingError: There is no Java.
    """
    return _program("java", "openjdk-17-jre-headless")


def kafka_jars(announce: Callable[[str], None]) -> Path:
    """Return the folder of the jars; the first call downloads them, while other processes wait.

    Args:
        announce: Called with a message before the download, which takes some seconds.

    Raises:
        BrokerMissingError: They are missing and cannot be downloaded.
    """
    libs = _CACHE / f"kafka-{VERSION}" / "libs"
    if not libs.exists():
        _CACHE.mkdir(exist_ok=True)
        with locked(_CACHE / f"kafka-{VERSION}.lock"):
            if not libs.exists():
                announce(f"Downloading Apache Kafka {VERSION} into {_CACHE.name}/ (43 MB, once)")
                _download(libs)
    return libs


def prepared(java: str, libs: Path, prepare: Callable[[str, Path, Path], None]) -> Path:
    """Return the folder with `FORMATTED` and `ARCHIVE`, with which Kafka starts sooner on this Java.

    Args:
        java: Path of the program.
        libs: Folder of the jars.
        prepare: Writes both into a folder, the first time, which takes ten seconds.
    """
    changed_at = int(Path(java).resolve().stat().st_mtime)  # another Java cannot read it
    ready = libs.parent / f"prepared-{changed_at}"
    if not ready.exists():
        with locked(_CACHE / f"kafka-{VERSION}.lock"):
            if not ready.exists():
                with TemporaryDirectory(dir=libs.parent) as folder:
                    prepare(java, libs, made(Path(folder) / "made"))
                    (Path(folder) / "made").rename(ready)
    return ready


def _download(libs: Path) -> None:
    maven = _program("mvn", "maven")
    with TemporaryDirectory(dir=_CACHE) as folder:
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}/libs"]
        done = subprocess.run(
            [maven, "-q", "-B", "-f", str(_POM), *goal], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise BrokerMissingError(f"Maven could not fetch Kafka: {(done.stdout + done.stderr).strip()[-300:]}")
        libs.parent.mkdir(exist_ok=True)
        (Path(folder) / "libs").rename(libs)


@cache
def _program(name: str, package: str) -> str:
    if shutil.which(name) is None:
        install(package)
    found = shutil.which(name)
    if found is None:
        raise BrokerMissingError(f"no {name}")
    return found
