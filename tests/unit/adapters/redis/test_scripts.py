"""`backplane.adapters.redis.scripts`: the scripts are known by their SHA-1, and run only what is granted."""

from __future__ import annotations

import hashlib
import re

import pytest

from backplane.adapters.redis.scripts import GRANTS, PERMITTED, SCRIPTS, SHARD_SCRIPTS, Script, Scripts

ALL = {
    "keep": SCRIPTS.keep,
    "keep_once": SCRIPTS.keep_once,
    "shard_keep": SHARD_SCRIPTS.keep,
    "shard_keep_once": SHARD_SCRIPTS.keep_once,
    "recall": SCRIPTS.recall,
    "permitted": PERMITTED,
}


def commands(script: Script) -> set[str]:
    """Return the commands that a script runs."""
    return {name.decode().lower() for name in re.findall(rb"redis\.p?call\('([A-Z]+)'", script.text)}


@pytest.mark.parametrize("name", ALL)
def test_script_is_known_by_its_digest(name: str) -> None:
    """A server names a script by the SHA-1 of its text in small hexadecimal digits."""
    script = ALL[name]
    assert script.digest == hashlib.sha1(script.text).hexdigest().encode()


@pytest.mark.parametrize(("scripts", "publish"), [(SCRIPTS, "publish"), (SHARD_SCRIPTS, "spublish")])
def test_every_command_is_granted_and_tested(scripts: Scripts, publish: str) -> None:
    """The line for the ACL names the commands of the scripts, and `PERMITTED` runs each before a message does."""
    used = set[str]().union(*(commands(script) for script in scripts.all)) - {publish}
    assert commands(PERMITTED) == used
    assert {*GRANTS.replace("+", "").split()} == used | {"evalsha", "script|load"}


@pytest.mark.parametrize("name", ["keep", "keep_once", "shard_keep", "shard_keep_once"])
def test_first_write_is_one_that_can_be_refused(name: str) -> None:
    """Nothing that a later command cannot undo is written before the command that a full server refuses."""
    order = re.findall(rb"redis\.(p?call)\('([A-Z]+)'", ALL[name].text)
    publish = b"SPUBLISH" if name.startswith("shard") else b"PUBLISH"
    writes = [command for _, command in order if command in (b"RPUSH", publish, b"SET", b"PEXPIRE")]
    assert writes[:2] == [b"RPUSH", publish]
    assert (b"pcall", publish) in order
