"""Looking at the network from inside boxes, for commands that must not stay there.

Owns: one short-lived child process that enters the boxes one after the other, runs a function in
each, and sends the results back. A rootless process that left the host's namespaces could never
come back (setns(2)), so the command itself does not go.

Must never: run a program in a box, decide what is looked at.

Example::

    results = in_boxes(["shop", "blog"], survey_box)
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from loopbox import client
from loopbox.errors import BoxError, LoopboxError

T = TypeVar("T")


def in_boxes(
    names: Sequence[str], look: Callable[[], T], *, with_files: bool = False
) -> dict[str, T | LoopboxError]:
    """`look()` in the network namespace of each box; an error in one spares the others.

    `with_files` also enters the mount namespace, where /etc/hosts and resolv.conf are the box's.
    Results travel by pickle. Raises KeeperError when no keeper runs.
    """
    if not names:
        return {}
    results: dict[str, T | LoopboxError] = {}
    with client.connect(start=False) as keeper:
        places: dict[str, dict[str, int]] = {}
        try:
            for name in names:
                try:
                    fields, fds = keeper.request({"verb": "lease", "name": name})
                except LoopboxError as error:
                    results[name] = error
                    continue
                places[name] = dict(zip(fields.get("fds", "").split(","), fds, strict=False))
            results |= _in_child(places, look, with_files=with_files)
        finally:
            for place in places.values():
                for fd in place.values():
                    os.close(fd)
    return results


def in_box(name: str, look: Callable[[], T], *, with_files: bool = False) -> T:
    """`look()` in one box. Raises BoxError when it is not up, or the error `look` raised."""
    found = in_boxes([name], look, with_files=with_files)[name]
    if isinstance(found, LoopboxError):
        raise found
    return found


def _in_child(
    places: dict[str, dict[str, int]], look: Callable[[], T], *, with_files: bool
) -> dict[str, T | LoopboxError]:
    sys.stdout.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _look_and_leave(places, look, writer, with_files=with_files)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    if not data:
        raise BoxError("cannot look into the boxes: the process that went there failed")
    found = pickle.loads(data)  # from our own child, by a pipe nobody else has
    assert isinstance(found, dict)
    return found


def _look_and_leave(
    places: dict[str, dict[str, int]], look: Callable[[], Any], writer: int, *, with_files: bool
) -> NoReturn:
    """The child's whole life."""
    # Other systems, which have no such calls, import this module too.
    from loopbox.kernel.syscalls import (  # noqa: PLC0415
        CLONE_NEWNET,
        CLONE_NEWNS,
        CLONE_NEWUSER,
        setns,
    )

    results: dict[str, object] = {}
    entered_user = False
    for name, place in places.items():
        try:
            user = place.get("user")
            if user is not None and not entered_user:
                setns(user, CLONE_NEWUSER)
                entered_user = True
            setns(place["net"], CLONE_NEWNET)
            if with_files:
                setns(place["mnt"], CLONE_NEWNS)
            results[name] = look()
        except LoopboxError as error:
            results[name] = error
        except Exception as error:  # it must reach the parent as words
            results[name] = BoxError(f"cannot look into box `{name}`: {error}")
    try:
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(results, pipe)
    finally:
        os._exit(0)
