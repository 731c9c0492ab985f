"""Asking the keeper, for the cold commands: JSON in and out, and what to say when none runs.

Owns: one request per call, the fields that name a box (an argument, or where the user stands).
Must never: render.

Example::

    box = ask_json("show", name="shop")
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

from loopbox import client
from loopbox.errors import BoxError, KeeperError, LoopboxError, linux_only
from loopbox.rules.naming import parse_box_name


def here() -> str:
    """The working directory, `/` when it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def ask(
    verb: str, *, start: bool = False, recover: bool = True, **fields: str | None
) -> dict[str, str]:
    """The reply's fields. Raises the LoopboxError the keeper answered with."""
    if sys.platform != "linux":
        raise linux_only("ask the keeper")
    recover = recover and verb not in ("status", "stop")
    with client.connect(start=start, recover=recover) as keeper:
        reply, fds = keeper.request(
            {"verb": verb, "cwd": here(), **{k: v for k, v in fields.items() if v is not None}}
        )
        for fd in fds:
            os.close(fd)
        return reply


def ask_json(verb: str, *, start: bool = False, recover: bool = True, **fields: str | None) -> Any:
    """The reply's JSON document."""
    return json.loads(ask(verb, start=start, recover=recover, **fields)["json"])


def boxes(*, recover: bool = True) -> list[dict[str, Any]]:
    """Every box that is up; none when no keeper runs (none is started to say so).

    `recover`: a keeper that was killed is started again, and finds its boxes.
    """
    try:
        found = ask_json("ls", recover=recover)["boxes"]
    except KeeperError as error:
        if error.code == "no-keeper":
            return []
        raise
    assert isinstance(found, list)
    return found


def names_up() -> set[str]:
    """Names of the boxes that are up."""
    return {found["name"] for found in boxes()}


def box(name: str | None) -> dict[str, Any]:
    """One box, by name or the working directory's. Raises BoxError when it is not up."""
    try:
        found = ask_json("show", name=box_name(name))
    except KeeperError as error:
        if error.code == "no-keeper":
            raise not_up(name) from error
        raise
    assert isinstance(found, dict)
    return found


def box_name(argument: str | None) -> str | None:
    """A box's name from what people type: `shop` and `shop.localhost` are one."""
    if argument is None:
        return None
    return argument.removesuffix(".").removesuffix(".localhost") or argument


def not_up(name: str | None) -> BoxError:
    """The error for a box that cannot be up because no keeper runs.

    Raises UsageError instead for what can be no box's name.
    """
    if name is not None:
        parse_box_name(name)
    which = "this directory's box" if name is None else f"box `{name}`"
    return BoxError(
        f"cannot find {which}: it is not up",
        hint="start it: loopbox run -- CMD",
        code="no-box",
    )


def complete_box(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of boxes that are up, for the shell."""
    try:
        names = [found["name"] for found in boxes()]
    except LoopboxError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
