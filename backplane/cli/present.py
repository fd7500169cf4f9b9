"""`backplane present`: which users are in a channel."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from backplane.channels import validate_channel
from backplane.cli.observer import (
    UNANSWERED,
    JsonOption,
    SecretOption,
    WaitOption,
    observed,
    print_json,
    print_rows,
    printing,
    reporting_errors,
    run,
    seen_workers,
)
from backplane.cli.terminal import UrlArgument, fail, note, out, progress, resolve_url, showing_warnings

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.cli.observer import Seen
    from backplane.presence_types import PresenceView

__all__ = ["present"]


def present(
    channel: Annotated[
        str, typer.Argument(metavar="CHANNEL", help="The channel, as its whole name.", show_default=False)
    ],
    url: UrlArgument = "env",
    seconds: WaitOption = 3.3,
    as_json: JsonOption = False,
    control_secret: SecretOption = None,
) -> None:
    """List the users who are in a channel, on all workers, by its presence.

    Where the list is empty it waits for heartbeats: without workers it states nothing.
    Users within their grace are not listed.

    Exit status: 0 this is the list, also an empty one, 1 no worker was seen, or the broker
    is not usable, 2 the URL, the channel or an option is wrong,
    3 a worker did not answer: users may be missing.
    """
    with showing_warnings(), progress() as on_progress, reporting_errors(as_json=as_json):
        url = resolve_url(url)
        masked, view, seen = run(_ask(url, validate_channel(channel), control_secret, seconds, on_progress))
    problem = None if seen is None else seen.problem
    status = 1
    if problem is None and view.stale:
        problem, status = "a worker did not answer: users may be missing", UNANSWERED
    if as_json:
        users = None if view.counts_only else sorted(view.users.values(), key=lambda user: user.user)
        print_json(
            ok=problem is None,
            problem=problem,
            url=masked,
            channel=channel,
            connections=view.connections,
            stale=view.stale,
            counts_only=view.counts_only,
            users=None
            if users is None
            else [{"user": user.user, "info": user.info, "connections": user.connections} for user in users],
        )
    elif problem is None or view.connections:
        _print(channel, view)
    if problem is not None:
        fail(problem, status=status)


async def _ask(
    url: str, channel: str, secret: str | None, seconds: float, on_progress: Callable[[str], None]
) -> tuple[str, PresenceView, Seen | None]:
    """Return who is present; where that is no user, or not sure, also which workers there are."""
    on_progress("connecting")
    async with observed(url, secret, seconds) as backplane:
        on_progress(f"asking who is in {channel!r}")
        view = await backplane.present(channel)
        if view.connections and not view.stale:
            return backplane.url, view, None
        seen = await seen_workers(backplane, secret, seconds, on_progress)
        return backplane.url, await backplane.present(channel), seen


def _print(channel: str, view: PresenceView) -> None:
    connections = f"{view.connections:,} connection{'' if view.connections == 1 else 's'}"
    if view.counts_only:
        with printing():
            out.print(f"{connections}; the workers exchange numbers alone in this channel", soft_wrap=True)
        return
    users = sorted(view.users.values(), key=lambda user: user.user)
    if users:
        rows = [
            (user.user, f"{user.connections:,}", "" if user.info is None else json.dumps(user.info, ensure_ascii=False))
            for user in users
        ]
        with printing():
            print_rows(("user", "connections", "info"), rows, right=(1,))
    note(f"{len(users):,} user{'' if len(users) == 1 else 's'} with {connections} in {channel!r}")
