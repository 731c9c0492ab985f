"""What `ls`, `show` and `link ls` tell of labs: links with their state, routers with theirs.

Owns: filling `links` and `router` of the contract's BOX, for the keeper knows nothing of labs; and
which links have gone with a box; and how a lab that is to be drawn is now.
Must never: render, change a lab.

Example::

    fill(boxes)        # boxes as the keeper gave them, now with links and routers
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loopbox.cli import asking
from loopbox.cli.lab_boxes import memory
from loopbox.cli.output import Output
from loopbox.errors import BoxError, HostError
from loopbox.lab.memory import LabRecord, digest_of
from loopbox.lab.records import Lab, Link
from loopbox.lab.runner import view_of

if TYPE_CHECKING:  # 20 ms with what it draws by
    from loopbox.lab.draw import Shown

Json = dict[str, Any]


def fill(boxes: Sequence[Json], *, up: Collection[str]) -> None:
    """Give the boxes of labs their links and routers; `up` are the names of all that are up."""
    by_name = {box["name"]: box for box in boxes}
    for record in memory().all():
        own = [label for label, name in record.boxes.items() if name in by_name]
        if not own:
            continue
        try:
            lab = memory().lab_of(record)
        except BoxError as error:  # made by another version: the boxes are there all the same
            for label in own:
                by_name[record.boxes[label]].setdefault("problems", []).append(error.message)
            continue
        for label in own:
            box = by_name[record.boxes[label]]
            box["links"] = list(_links_of(record, lab, label, up=up))
            if lab.box(label).is_router:
                box["router"] = _router(record, lab, label)


def state_of(record: LabRecord, link: Link, *, up: Collection[str]) -> str:
    """`up`, `cut`, `silent`, or `gone`: with the box at one of its ends, or the bridges' box."""
    ends = [record.boxes[end.box] for end in link.ends]
    if link.is_bridge and record.fabric is not None:
        ends.append(record.fabric)
    if any(name not in up for name in ends):
        return "gone"
    return record.cut.get(link.name, "up")


def _links_of(record: LabRecord, lab: Lab, label: str, *, up: Collection[str]) -> Iterator[Json]:
    """One entry for each box at another end. The contract has two states; `how` tells more."""
    for link in lab.links_of(label):
        state = state_of(record, link, up=up)
        for end in link.ends:
            if end.box != label:
                yield {
                    "name": link.name,
                    "peer": record.boxes[end.box],
                    "state": "up" if state == "up" else "cut",
                    "how": None if state == "up" else "carrier" if state == "cut" else state,
                    "interface": link.end(label).interface,
                    "addresses": [str(item) for item in link.end(label).addresses],
                }


def look_at(lab: Lab, out: Output) -> Shown:
    """How the lab of this file is now; nothing is known of one that is not up."""
    from loopbox.lab.draw import Shown  # noqa: PLC0415

    records = [
        item for item in memory().all() if item.done and item.file == str(lab.path.resolve())
    ]
    records.sort(key=lambda item: item.lab != lab.name)
    if not records:
        return Shown()
    record = records[0]
    if record.digest != digest_of(replace(lab, name=record.lab, path=lab.path.resolve())):
        out.say(f"lab {record.lab} is up as the file was before: drawn as the file is now")
        return Shown()
    up = asking.names_up()
    cut = {link.name for link in lab.links if state_of(record, link, up=up) != "up"}
    return Shown(frozenset(cut), _session_states(record, lab), is_live=True)


def _session_states(record: LabRecord, lab: Lab) -> dict[str, str]:
    """Session to state: Established where both ends say so, else what the end says that does not.

    A router that does not answer holds no session.
    """
    states: dict[str, str] = {}
    for box in lab.boxes:
        if box.bgp is None:
            continue
        try:
            said = view_of(record, lab, box.name).state()["bgp"]["sessions"]
        except (BoxError, HostError):
            said = []
        found = {item["name"]: item["state"] for item in said if "name" in item}
        for session in lab.sessions_of(box.name):
            state = found.get(session.name, "gone")
            if states.get(session.name, "Established") == "Established":
                states[session.name] = state
    return {session.name: states[session.name] for session in lab.sessions}


def _router(record: LabRecord, lab: Lab, label: str) -> Json:
    try:
        return view_of(record, lab, label).state()
    except (BoxError, HostError) as error:
        choice = lab.box(label).router_id
        return {
            "router_id": None if choice is None or choice.value is None else str(choice.value),
            "ospf": None,
            "bgp": None,
            "problem": error.message,
        }


def lines_of(box: Json) -> Iterable[str]:
    """The same for a person, one line a link."""
    for link in box["links"]:
        how = f" ({link['how']})" if link["how"] not in (None, "carrier") else ""
        address = f"  {link['addresses'][0]}" if link["addresses"] else ""
        yield f"link {link['name']} to {link['peer']}: {link['state']}{how}{address}"
    router = box["router"]
    if router is None:
        return
    parts = [f"router {router['router_id'] or 'without an ID'}"]
    if problem := router.get("problem"):
        parts.append(problem)
    else:
        neighbours, sessions = router["ospf"]["neighbors"], router["bgp"]["sessions"]
        full = sum(item["state"] == "Full" for item in neighbours)
        held = sum(item["state"] == "Established" for item in sessions)
        if neighbours:
            parts.append(f"OSPF {full} of {len(neighbours)} neighbours Full")
        if sessions:
            parts.append(f"BGP {held} of {len(sessions)} sessions Established")
    yield ", ".join(parts)
