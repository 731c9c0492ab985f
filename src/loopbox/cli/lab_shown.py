"""What `ls`, `show` and `link ls` tell of labs: links with their state, routers with theirs.

Owns: filling `links` and `router` of the contract's BOX, for the keeper knows nothing of labs; and
which links have gone with a box.
Must never: render, change a lab.

Example::

    fill(boxes)        # boxes as the keeper gave them, now with links and routers
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from loopbox.cli.lab_boxes import memory
from loopbox.errors import BoxError, HostError
from loopbox.lab.memory import LabRecord
from loopbox.lab.records import Lab, Link
from loopbox.lab.runner import view_of

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
