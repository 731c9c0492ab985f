"""`loopbox predict`, `lab`, `export` and `import`: labs on paper, without a keeper.

Must never: compute or draw itself; lab/ does, here is what is said.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopbox.cli.output import current_output, table
from loopbox.errors import ConfigError, HostError, UsageError
from loopbox.lab.records import Lab
from loopbox.places import runtime_path
from loopbox.rules.routing import RULES

if TYPE_CHECKING:
    from loopbox.lab.outcomes import Scenario

_FILE = click.argument(
    "file",
    metavar="[FILE]",
    default="loopbox.toml",
    type=click.Path(dir_okay=False, path_type=Path),
)


def _load(file: Path) -> Lab:
    """The lab in `file`, with its warnings said."""
    from loopbox.lab.topology import load  # noqa: PLC0415  only these commands need it

    lab = load(file)
    if not lab.boxes:
        raise ConfigError(f"cannot use `{file}`: it declares no box", hint="add [box.r1]")
    for warning in lab.warnings:
        current_output().say(f"warning: {warning}")
    return lab


# -- predict --------------------------------------------------------------------------------------


@click.command()
@_FILE
@click.option(
    "--failures", default=1, metavar="N", type=click.IntRange(1, 8), help="Up to N at once (1)."
)
@click.option("--check", is_flag=True, help="Exit 1 when a failure hurts what did not fail.")
@click.option("--silent", is_flag=True, help="Failures that keep the carrier: only timers notice.")
@click.option("--no-routes", is_flag=True, help="Leave out which routes change (faster).")
@click.option(
    "--as",
    "makers",
    multiple=True,
    type=click.Choice(list(RULES)),
    help="Router IDs by this rule too.",
)
def predict(
    file: Path,
    *,
    failures: int,
    check: bool,
    silent: bool,
    no_routes: bool,
    makers: tuple[str, ...],
) -> None:
    """Which failures of a lab would hurt, before they happen.

    Goes through every set of up to N failed links and boxes: which loopbacks become unreachable,
    which sessions are lost or flap, which routes change. Nothing is started.

    \b
    loopbox predict triangle.toml
    loopbox predict triangle.toml --failures 2 --check
    loopbox predict triangle.toml --as junos
    """
    from loopbox.lab import predict as prediction  # noqa: PLC0415  numpy takes 0.1 s
    from loopbox.lab.outcomes import router_ids  # noqa: PLC0415

    out, lab = current_output(), _load(file)
    scenarios = prediction.predict(
        lab,
        failures=failures,
        kind="silent" if silent else "carrier",
        routes=not no_routes and (out.json or out.verbose or failures == 1),
    )
    if out.json:
        hurt = _emit_document(lab, scenarios, makers)
    else:
        ids = {rule: router_ids(lab, rule=rule) for rule in ("frr", *makers)}
        hurt = _print_scenarios(lab, scenarios, ids)
    if check and hurt:
        out.say(f"{hurt} of the failures hurt what did not fail")
        click.get_current_context().exit(1)


def _emit_document(lab: Lab, scenarios: Iterator[Scenario], makers: tuple[str, ...]) -> int:
    """Print the contract's document scenario by scenario: it may be larger than memory."""
    from loopbox.lab.outcomes import document  # noqa: PLC0415

    head = document(lab, [], rules=makers)
    del head["scenarios"]
    click.echo(json.dumps(head)[:-1] + ', "scenarios": [', nl=False)
    hurt = 0
    for number, scenario in enumerate(scenarios):
        hurt += scenario.hurts(lab)
        click.echo((", " if number else "") + json.dumps(scenario.as_json(lab)), nl=False)
    click.echo("]}")
    return hurt


def _print_scenarios(
    lab: Lab, scenarios: Iterator[Scenario], ids: dict[str, dict[str, Any]]
) -> int:
    out = current_output()
    makers = list(ids)
    rows = [
        [box, *(str(ids[maker][box][key]) for maker in makers for key in ("router_id", "reason"))]
        for box in ids["frr"]
    ]
    if rows:
        titles = ["router ID" if maker == "frr" else f"as {maker}" for maker in makers]
        header = ["router", *(word for title in titles for word in (title, "why"))]
        click.echo(table(rows, header=header) + "\n")
    counts: Counter[str] = Counter()
    rows = []
    for scenario in scenarios:
        hurts = scenario.hurts(lab)
        counts["all"] += 1
        counts["hurt"] += hurts
        rows.append(
            [
                " + ".join(scenario.cut),
                "hurts" if hurts else "ok",
                _listed([item.name for item in scenario.sessions_lost]),
                _listed([item.name for item in scenario.sessions_flapping]),
                _listed(
                    [f"{item.box} from {_listed(item.sources)}" for item in scenario.unreachable]
                ),
                str(len(scenario.reroutes)),
            ]
        )
    header = ["failed", "", "sessions lost", "sessions flapping", "unreachable", "routes changed"]
    click.echo(table(rows, header=header))
    out.say(f"{counts['all']} failures, {counts['hurt']} hurt what did not fail")
    return counts["hurt"]


def _listed(names: Any, *, most: int = 3) -> str:
    names = list(names)
    return (
        ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
        or "-"
    )


# -- lab draw -------------------------------------------------------------------------------------


@click.group()
def lab() -> None:
    """Pictures and configurations of a lab file.

    \b
    loopbox lab draw triangle.toml
    """


@lab.command()
@_FILE
@click.option("-o", "--output", metavar="FILE.svg", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--svg", is_flag=True, help="Print SVG (the default with -o).")
@click.option("--plan", is_flag=True, help="As the file has it, though the lab is up.")
def draw(file: Path, output: Path | None, *, svg: bool, plan: bool) -> None:
    """Draw a lab: text for the terminal, SVG for pages.

    When the lab is up, cut links and the states of sessions are shown too.

    \b
    loopbox lab draw triangle.toml
    loopbox lab draw triangle.toml -o triangle.svg
    """
    from loopbox.lab.draw import Shown, draw_svg, draw_text  # noqa: PLC0415

    out, found = current_output(), _load(file)
    shown = Shown()
    if not plan and os.path.isdir(f"{runtime_path()}/labs"):
        from loopbox.cli.lab_shown import look_at  # noqa: PLC0415

        shown = look_at(found, out)
    if output is not None:
        _write(output, draw_svg(found, shown=shown))
        out.say(f"wrote {output}")
    elif out.json:
        document = {
            "lab": found.name,
            "up": shown.is_live,
            "cut": sorted(shown.cut),
            "sessions": dict(shown.sessions),
            "svg": draw_svg(found, shown=shown),
        }
        out.emit(document, lambda: "")
    else:
        text = draw_svg(found, shown=shown) if svg else draw_text(found, shown=shown)
        click.echo(text, nl=False)


@lab.command()
@_FILE
@click.argument("box", required=False)
def config(file: Path, box: str | None) -> None:
    """Print the frr.conf that a router of the lab gets.

    \b
    loopbox lab config triangle.toml r1
    """
    from loopbox.lab.frr import render_frr_conf  # noqa: PLC0415

    out, found = current_output(), _load(file)
    routers = [item for item in found.boxes if item.is_router]
    if box is not None:
        known = ", ".join(item.name for item in routers[:12])
        routers = [item for item in routers if item.name == box]
        if not routers:
            raise UsageError(
                f"cannot show `{box}`: the lab has no such router",
                hint=f"its routers: {known or 'none'}",
            )
    own = _own_configs(found)
    texts = {item.name: own.get(item.name) or render_frr_conf(found, item) for item in routers}
    out.emit(texts, lambda: "\n".join(texts.values()))


# -- export, import -------------------------------------------------------------------------------


@click.command()
@_FILE
@click.option("--to", "target", type=click.Choice(["containerlab"]), required=True)
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the files go (default: NAME.clab here).",
)
@click.option("--image", metavar="IMAGE", help="FRR's image (default: a release of its own).")
def export(file: Path, target: str, output: Path | None, image: str | None) -> None:
    """Write a lab for containerlab, the way to a cluster.

    \b
    loopbox export triangle.toml --to containerlab
    cd triangle.clab && sudo containerlab deploy
    """
    from loopbox.lab.containerlab import IMAGE, export_lab  # noqa: PLC0415

    out, found = current_output(), _load(file)
    made = export_lab(found, image=image or IMAGE, own=_own_configs(found))
    folder = output or Path(f"{found.name}.clab")
    for name, text in made.files.items():
        _write(folder / name, text)
    for item in made.left_out:
        out.say(f"left out: {item}")
    document = {
        "to": target,
        "folder": str(folder),
        "files": list(made.files),
        "left_out": list(made.left_out),
    }
    out.emit(document, lambda: "\n".join(str(folder / name) for name in made.files))


@click.command("import")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("-o", "--output", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
def import_(file: Path, output: Path | None) -> None:
    """Read a topology of containerlab or munet and print it as a lab file.

    \b
    loopbox import dc.clab.yml -o loopbox.toml
    """
    from loopbox.lab.importing import import_topology  # noqa: PLC0415
    from loopbox.lab.topology import parse  # noqa: PLC0415

    out = current_output()
    made = import_topology(file)
    for item in made.left_out:
        out.say(f"left out: {item}")
    try:
        parse(made.text, path=output or Path("loopbox.toml"))
    except ConfigError as error:
        out.say(f"warning: not a lab yet: {error.message}")
    if output is not None:
        _write(output, made.text)
        out.say(f"wrote {output}")
    document = {"text": made.text, "left_out": list(made.left_out)}
    out.emit(document, lambda: "" if output is not None else made.text.rstrip())


def _own_configs(found: Lab) -> dict[str, str]:
    """The text of each `config` that a box names."""
    from loopbox.lab.labfile import read_text  # noqa: PLC0415

    return {box.name: read_text(box.config) for box in found.boxes if box.config is not None}


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as err:
        raise HostError(
            f"cannot write `{path}`: {(err.strerror or str(err)).lower()}",
            hint="choose another place with -o",
        ) from err
