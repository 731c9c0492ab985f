"""A lab made real, taken down, cut and mended: the order of things.

Owns: the stages of `up` (boxes, wires, daemons, services, convergence) with the undo of all of
them, the decision whether a lab that is up is the one the file describes, `down`, and links.
The keeper knows boxes and nothing of labs; it is asked through `Boxes`.
Must never: enter a box itself (`away` sends a child), print.

Example::

    runner = Runner(boxes, Memory(runtime), say=print)
    outcome = runner.up(load(Path("triangle.toml")), seconds=60)
    runner.cut(record, lab.link("r1-r2"), silent=False)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from loopbox.errors import BoxError, ConfigError, UsageError
from loopbox.lab import away, own_config
from loopbox.lab.away import Places, do_away
from loopbox.lab.links import FABRIC, needs_fabric
from loopbox.lab.memory import Cut, LabRecord, Memory, digest_of
from loopbox.lab.records import Lab, Link, Service
from loopbox.rules.naming import is_box_name

if TYPE_CHECKING:  # routers' code is loaded where there are routers
    from loopbox.lab.asking import RouterView

_DAEMONS_PATIENCE = 120.0
"""Seconds for all daemons to answer: 100 routers take 15 on two cores."""
_MANY = 10
"""Routers that take over a second to start."""
_QUIET = 1.0
"""Seconds that pass before progress is told."""
_STILL = 5.0
"""Seconds before it is told again though there was none."""


class Boxes(Protocol):
    """What a lab needs of the keeper."""

    def make(self, names: Sequence[str], *, directory: Path, rooted: bool) -> None:
        """Make kept boxes without a way out; `rooted`: daemons in them can be root."""

    def networks(self, names: Sequence[str]) -> tuple[dict[str, tuple[int, int]], int | None]:
        """Name to (descriptor, cookie) of its network, and the keeper's user namespace.

        Raises BoxError with the code `no-box` when one is not up.
        """

    def serve(self, name: str, service: Service, *, directory: Path, log: Path) -> None:
        """Start a service in a box and wait until it is ready. It ends with the box."""

    def down(self, names: Sequence[str], *, grace: float) -> None:
        """End what runs in boxes and remove them; those that are not up are no error."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `up` did."""

    record: LabRecord
    lab: Lab
    changed: bool
    seconds: float


class Runner:
    """Brings labs up and down. One at a time; blocks."""

    def __init__(
        self,
        boxes: Boxes,
        memory: Memory,
        *,
        say: Callable[[str], None] = lambda _text: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`say` tells a person how far it is; `check` raises when it is time to end."""
        self._boxes = boxes
        self._memory = memory
        self._say = say
        self._check = check

    # -- up -----------------------------------------------------------------------------------

    def up(self, lab: Lab, *, seconds: float) -> Outcome:
        """Make a lab real and wait until it has converged; nothing where it is so already.

        A half-made lab is unmade when this fails or is interrupted. One that is whole but has not
        converged after `seconds` is left up: DeadlineError says what is missing.
        """
        begun = time.monotonic()
        digest = digest_of(lab)
        there = self._memory.find(lab.name)
        if there is not None and self._is_whole(there):
            if there.digest != digest:
                raise BoxError(
                    f"cannot change lab `{lab.name}` while it is up: the file says something else "
                    "now",
                    hint=f"make it anew: loopbox down {lab.name} && loopbox up {lab.path}",
                    code="lab-changed",
                )
            if not there.cut:
                self._converge(there, lab, seconds=seconds)
            return Outcome(there, lab, changed=False, seconds=time.monotonic() - begun)
        if there is not None:
            self._say(f"lab {lab.name} is not whole: making it anew")
            self.down(there)
        if any(box.is_router for box in lab.boxes):
            from loopbox.lab.frr_daemons import find_folder  # noqa: PLC0415

            find_folder()
        own_config.check(lab)
        record = LabRecord(
            lab=lab.name,
            file=str(lab.path),
            digest=digest,
            runs=str(self._memory.choose_runs(lab)),
            boxes=box_names(lab),
            fabric=fabric_name(lab),
        )
        try:
            self._memory.begin(lab, record)
            self._memory.make_runs(record)
            record = self._make(record, lab)
        except BaseException:
            self.down(record)
            raise
        self._converge(record, lab, seconds=seconds)
        return Outcome(record, lab, changed=True, seconds=time.monotonic() - begun)

    def _make(self, record: LabRecord, lab: Lab) -> LabRecord:
        """Everything but convergence; gives the record as it is then."""
        rooted = [record.boxes[box.name] for box in lab.boxes if away.needs_root(box)]
        plain = [name for name in record.places if name not in set(rooted)]
        directory = lab.path.parent
        for names, is_rooted in ((plain, False), (rooted, True)):
            if names:
                self._boxes.make(names, directory=directory, rooted=is_rooted)
                self._check()
        places, cookies = self._places(record)
        record = replace(record, cookies=cookies)
        self._memory.save(record)
        try:
            do_away(partial(away.wire, lab, places))
            self._check()
            if any(box.is_router for box in lab.boxes):
                self._tell_routers(lab)
                do_away(
                    partial(
                        away.start_routers,
                        lab,
                        places,
                        Path(record.runs),
                        seconds=_DAEMONS_PATIENCE,
                    )
                )
            if any(item.check is not None for box in lab.boxes for item in box.anycast):
                do_away(partial(away.start_checks, lab, places, Path(record.runs)))
        finally:
            places.close()
        for box in lab.boxes:
            for service in box.services:
                self._boxes.serve(
                    record.boxes[box.name],
                    service,
                    directory=directory,
                    log=Path(record.runs) / f"{box.name}.{service.name}.log",
                )
        self._check()
        record = replace(record, done=True)
        self._memory.save(record)
        return record

    def _tell_routers(self, lab: Lab) -> None:
        count = sum(box.is_router for box in lab.boxes)
        if count >= _MANY:
            self._say(
                f"{len(lab.boxes)} boxes and {len(lab.links)} links are made; {count} routers start"
            )

    def _converge(self, record: LabRecord, lab: Lab, *, seconds: float) -> None:
        views = [view_of(record, lab, box.name) for box in lab.boxes if box.is_router]
        if not views:
            return
        from loopbox.lab.asking import wait_converged  # noqa: PLC0415

        begun = told = time.monotonic()

        shown = 0

        def tell(done: int, total: int) -> None:
            nonlocal told, shown
            self._check()
            since = time.monotonic() - told
            if done < total and since > (_QUIET if done != shown else _STILL):
                told, shown = time.monotonic(), done
                self._say(f"{done} of {total} routers have converged, {told - begun:.0f} s")

        wait_converged(views, standing=partial(standing_sessions, lab), seconds=seconds, tell=tell)

    def _is_whole(self, record: LabRecord) -> bool:
        """Whether a lab's boxes, wires and daemons are those that were made."""
        if not record.done:
            return False
        try:
            places, cookies = self._places(record)
        except BoxError:
            return False
        places.close()
        if cookies != record.cookies:
            return False
        try:
            lab = self._memory.lab_of(record)
        except BoxError:
            return False
        return all(
            view_of(record, lab, box.name).is_answering() for box in lab.boxes if box.is_router
        )

    def _places(
        self, record: LabRecord, only: Collection[str] | None = None
    ) -> tuple[Places, dict[str, int]]:
        """The networks of a lab's boxes (of those in `only`), and their cookies."""
        wanted = {
            label: name
            for label, name in (
                *record.boxes.items(),
                *([] if record.fabric is None else [(FABRIC, record.fabric)]),
            )
            if only is None or label in only
        }
        found, user = self._boxes.networks(list(wanted.values()))
        networks = {label: found[name][0] for label, name in wanted.items()}
        return Places(networks, user), {name: cookie for name, (_fd, cookie) in found.items()}

    # -- down ---------------------------------------------------------------------------------

    def down(self, record: LabRecord, *, grace: float = 0.0) -> list[str]:
        """Take a lab down, with whatever of it was made; gives its boxes' names.

        Without grace daemons are killed: nothing of theirs has to be saved, and an orderly end
        would cost a second.
        """
        self._boxes.down(record.places, grace=grace)
        self._memory.forget(record)
        return record.places

    # -- links --------------------------------------------------------------------------------

    def cut(self, record: LabRecord, links: Sequence[Link], *, silent: bool) -> LabRecord:
        """Cut links at every end; those that are cut the other way are mended first."""
        state: Cut = "silent" if silent else "cut"
        wanted = [link for link in links if record.cut.get(link.name) != state]
        other = [link for link in wanted if link.name in record.cut]
        if other:
            record = self.mend(record, other)
        return self._change(record, wanted, state)

    def mend(self, record: LabRecord, links: Sequence[Link]) -> LabRecord:
        """Undo cuts, whichever they were; a link that is up is left alone."""
        return self._change(record, [link for link in links if link.name in record.cut], None)

    def _change(self, record: LabRecord, links: Sequence[Link], state: Cut | None) -> LabRecord:
        if not links:
            return record
        lab = self._memory.lab_of(record)
        places, _cookies = self._places(record, {end.box for link in links for end in link.ends})
        try:
            if state is not None:
                do_away(partial(away.cut, lab, links, places, silent=state == "silent"))
            else:
                for how in ("cut", "silent"):
                    those = [link for link in links if record.cut[link.name] == how]
                    if those:
                        do_away(partial(away.mend, lab, those, places, was_down=how == "cut"))
        finally:
            places.close()
        for link in links:
            record = record.with_state(link.name, state)
        self._memory.save(record)
        return record


def view_of(record: LabRecord, lab: Lab, box: str) -> RouterView:
    """A router of a lab that is up, to be asked. Raises UsageError for what is none."""
    try:
        found = lab.box(box)
    except KeyError:
        raise UsageError(f"cannot find `{box}`: lab `{lab.name}` has no such box") from None
    if not found.is_router:
        raise UsageError(
            f"cannot ask `{box}`: it is no router",
            hint="routers have `ospf` or `bgp` in the lab file",
        )
    from loopbox.lab.asking import RouterView  # noqa: PLC0415

    return RouterView(lab, found, record.run_directory(box))


def links_named(lab: Lab, words: Sequence[str]) -> list[Link]:
    """The link of that name, or those between two boxes. Raises UsageError when there is none."""
    names = [word.removesuffix(f".{lab.name}") for word in words]
    try:
        found = [lab.link(names[0])] if len(names) == 1 else list(lab.links_between(*names))
    except KeyError:
        found = []
    if not found:
        what = f"link `{names[0]}`" if len(names) == 1 else f"a link between {' and '.join(names)}"
        known = ", ".join(link.name for link in lab.links[:8])
        more = ", …" if len(lab.links) > 8 else ""
        raise UsageError(
            f"cannot find {what} in lab `{lab.name}`", hint=f"its links: {known or 'none'}{more}"
        )
    return found


def box_names(lab: Lab) -> Mapping[str, str]:
    """Name in the file to the box's: `r1` of lab `triangle` is `r1.triangle`.

    Raises ConfigError when a name would be no box's.
    """
    names = {box.name: f"{box.name}.{lab.name}" for box in lab.boxes}
    for label, name in names.items():
        if not is_box_name(name):
            raise ConfigError(
                f"cannot use `{lab.path}`: box `{label}` of lab `{lab.name}` would be called "
                f"`{name}`, which is no box's name",
                hint="use lower-case letters, digits and hyphens, and shorter names",
            )
    return names


def fabric_name(lab: Lab) -> str | None:
    """The box for the lab's bridges, by a name no box of the lab has; None where it has none."""
    if not needs_fabric(lab):
        return None
    label, taken = "bridges", {box.name for box in lab.boxes}
    while label in taken:
        label += "-"
        label += "x"
    return f"{label}.{lab.name}"


def standing_sessions(lab: Lab) -> set[str]:
    """Names of the sessions that can come up: all, in a lab without mistakes."""
    if not lab.sessions:
        return set()
    from loopbox.lab.forwarding import Network  # noqa: PLC0415  rustworkx and numpy: 0.1 s

    return Network(lab).standing()
