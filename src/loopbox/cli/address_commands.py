"""`loopbox classify`, `addr` and `guard`: loopback addresses, and keeping them off the wire.

Must never: judge or touch the kernel itself; rules/ decides, kernel/ acts, here is what is said.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from loopbox.cli import asking
from loopbox.cli.output import current_output, table, wrapped
from loopbox.cli.visiting import in_box
from loopbox.errors import HostError, UsageError
from loopbox.kernel import aliases
from loopbox.kernel import guard as guarding
from loopbox.kernel.survey import network_here
from loopbox.rules import addressing
from loopbox.rules.alias_files import APPLY, PATHS
from loopbox.rules.alias_plans import AliasPlan, plan_alias
from loopbox.rules.alias_systems import SYSTEMS
from loopbox.rules.aliases import Judgement, judge_addition, judge_deletion
from loopbox.rules.network import Network

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_LETTERS = {True: "yes", False: "no", None: "n/a"}


def _place(command: F) -> F:
    """The options --host and --box."""
    command = click.option(
        "--box", metavar="NAME", shell_complete=asking.complete_box, help="Inside this box."
    )(command)
    return click.option("--host", is_flag=True, help="Where this command runs (the default).")(
        command
    )


def _at(box: str | None, host: bool, look: Callable[[], T]) -> T:
    """`look()` here, or in a box."""
    if box is None:
        return look()
    if host:
        raise UsageError("cannot do both: --host and --box exclude each other")
    return in_box(asking.box(box)["name"], look)


# -- classify -------------------------------------------------------------------------------------


@click.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
def classify(addresses: tuple[str, ...]) -> None:
    """Say what an address is, by the registries: loopback, private, public, reserved.

    \b
    loopbox classify 127.0.0.1 ::1 0.0.0.0
    loopbox classify ::ffff:127.0.0.1 --json
    """
    out = current_output()
    found = [addressing.classify(text) for text in addresses]

    def render() -> str:
        rows = [
            (
                entry.address,
                entry.kind,
                _LETTERS[entry.source],
                _LETTERS[entry.destination],
                _LETTERS[entry.forwardable],
                _LETTERS[entry.is_global],
            )
            for entry in found
        ]
        header, *lines = table(
            rows, header=("address", "class", "source", "dest", "forward", "global")
        ).split("\n")
        told = [
            f"{line}\n{wrapped(f'{entry.note} ({entry.rfc})', indent='    ')}"
            for entry, line in zip(found, lines, strict=True)
        ]
        return "\n".join([out.style(header, underline=True), *told])

    out.emit({"addresses": [entry.as_json() for entry in found]}, render)


# -- addr -----------------------------------------------------------------------------------------


@click.group()
def addr() -> None:
    """List, add and delete addresses of the loopback interface.

    \b
    loopbox addr ls
    sudo loopbox addr add 10.9.9.9
    loopbox addr plan 127.0.0.2 --os macos
    """


@addr.command("ls")
@_place
def addr_ls(host: bool, box: str | None) -> None:
    """List the addresses of the loopback interface.

    \b
    loopbox addr ls
    loopbox addr ls --box shop --json
    """
    out = current_output()
    network = _at(box, host, network_here)
    link = aliases.loopback_of(network)
    entries = [
        {
            "address": addressing.text_of(entry.address),
            "prefix": entry.prefix,
            "family": "ipv4" if entry.address.version == 4 else "ipv6",
            "scope": entry.scope,
            "class": addressing.classify(str(entry.address)).kind,
        }
        for entry in network.addresses_on(link)
    ]
    document = {"interface": link.name, "up": link.is_up, "addresses": entries}
    if not link.is_up:
        out.say(f"{link.name} is down")
    out.emit(
        document,
        lambda: table(
            [(f"{e['address']}/{e['prefix']}", str(e["scope"]), str(e["class"])) for e in entries],
            header=("address", "scope", "class"),
        ),
    )


@addr.command("add")
@click.argument("address", metavar="ADDRESS[/PREFIX]")
@_place
@click.option("--scope", type=click.Choice(["host", "global"]), help="Default: host for 127/8.")
@click.option("--force", is_flag=True, help="Even where more than one address becomes local.")
@click.option("--persist", type=click.Choice(sorted(PATHS)), help="Keep it over a reboot.")
def addr_add(
    *,
    address: str,
    host: bool,
    box: str | None,
    scope: str | None,
    force: bool,
    persist: str | None,
) -> None:
    """Add an address to the loopback interface (/32 or /128 unless you say otherwise).

    \b
    sudo loopbox addr add 10.9.9.9
    sudo loopbox addr add 10.9.9.9 --persist networkd
    loopbox addr add 203.0.113.5 --box shop
    """
    parsed, prefix = addressing.parse_interface(address)

    def judge(network: Network) -> Judgement:
        return judge_addition(parsed, prefix, network, scope=scope)

    _change("add", judge, host=host, box=box, force=force, persist=persist)


@addr.command("del")
@click.argument("address", metavar="ADDRESS[/PREFIX]")
@_place
@click.option("--force", is_flag=True, help="Even where secondary addresses go with it.")
@click.option("--persist", type=click.Choice(sorted(PATHS)), help="Also forget it for good.")
def addr_del(address: str, host: bool, box: str | None, force: bool, persist: str | None) -> None:
    """Take an address off the loopback interface; 127.0.0.1/8 and ::1/128 always stay.

    \b
    sudo loopbox addr del 10.9.9.9
    """
    parsed, prefix = addressing.parse_interface(address)

    def judge(network: Network) -> Judgement:
        return judge_deletion(parsed, prefix, network)

    _change("delete", judge, host=host, box=box, force=force, persist=persist)


def _change(
    act: str,
    judge: Callable[[Network], Judgement],
    *,
    host: bool,
    box: str | None,
    force: bool,
    persist: str | None,
) -> None:
    """Judge, act, persist, tell."""
    out = current_output()
    if persist is not None and box is not None:
        raise UsageError("cannot persist an address of a box: it is made anew each time")
    judged, changed, name = _at(box, host, lambda: _judge_and_act(act, judge, force=force))
    path = None if persist is None else aliases.persist_alias(act, persist, judged.text)
    if judged.done or not changed:
        out.say(f"`{judged.text}` is {'already' if act == 'add' else 'not'} there")
    for warning in judged.warnings if changed else ():
        out.say(f"warning: {warning}")
    if path is not None and persist is not None:
        out.say(f"changed {path}; to apply it: {APPLY[persist]}")
    document = {
        "interface": name,
        "address": judged.text,
        "changed": changed,
        "warnings": list(judged.warnings),
        "persisted": path,
    }
    out.emit(document, lambda: judged.text if changed else "")


def _judge_and_act(
    act: str, judge: Callable[[Network], Judgement], *, force: bool
) -> tuple[Judgement, bool, str]:
    """(judgement, whether anything changed, interface name), in the namespace it is called in."""
    network = network_here()
    link = aliases.loopback_of(network)
    judged = judge(network)
    if judged.refusal is not None and not (force and judged.forcible):
        raise HostError(
            f"cannot {act} `{judged.text}` {aliases.WAY[act]} `{link.name}`: {judged.refusal}",
            hint=judged.hint,
            code="refused",
        )
    changed = not judged.done and aliases.change_alias(act, judged, network)
    return judged, changed, link.name


@addr.command("plan")
@click.argument("address", metavar="ADDRESS[/PREFIX]")
@click.option("--os", "system", type=click.Choice(list(SYSTEMS)), required=True, help="For which.")
@click.option("--persist", metavar="KIND", help="Only this way to keep it over a reboot.")
def addr_plan(address: str, system: str, persist: str | None) -> None:
    """Print the commands of any system to add, undo, list and keep a loopback address.

    \b
    loopbox addr plan 127.0.0.2 --os macos
    loopbox addr plan 10.9.9.9 --os freebsd --persist rc.conf
    """
    parsed, prefix = addressing.parse_interface(address)
    plan = plan_alias(parsed, prefix, system=system, persist=persist)
    current_output().emit(plan.as_json(), lambda: plan_text(plan))


def plan_text(plan: AliasPlan) -> str:
    """Commands to copy, everything else as comments."""
    need = {True: "is needed", False: "is not needed", None: "may be needed"}[plan.needed]
    lines = [f"# {plan.system}, {plan.interface}: an alias {need}: {plan.reason}"]
    if plan.trust != "measured":
        how = "read in its documentation" if plan.trust == "read" else "common knowledge"
        lines.append(f"# not verified by us: {how}")
    for title, commands in (("add", plan.add), ("undo", plan.undo), ("list", plan.list)):
        lines += [f"# {title}", *commands]
    for way in plan.persist:
        trust = "" if way.trust == "measured" else f" ({way.trust})"
        lines.append(f"# keep it over a reboot: {way.kind}{trust}")
        if way.file is not None and way.text4 is not None:
            lines += [f"# in {way.file}:", *(f"#   {line}" for line in way.text4.splitlines())]
        lines += [*way.add, *(f"# undo: {command}" for command in way.undo)]
    return "\n".join([*lines, *(f"# note: {note}" for note in plan.notes)])


# -- guard ----------------------------------------------------------------------------------------


@click.group()
def guard() -> None:
    """Keep 127/8 and ::1 off every wire, in both directions, by an nftables table of our own.

    \b
    sudo loopbox guard on
    loopbox guard status --box shop
    """


@guard.command("on")
@_place
def guard_on(host: bool, box: str | None) -> None:
    """Put the guard up. Boxes have it from birth; on the host it lasts until the next boot.

    \b
    sudo loopbox guard on --host
    """
    _set_guard(box, host, guarding.raise_guard, state="on")


@guard.command("off")
@_place
def guard_off(host: bool, box: str | None) -> None:
    """Take the guard away; nothing else of the packet filter changes.

    \b
    sudo loopbox guard off --host
    """
    _set_guard(box, host, guarding.lower_guard, state="off")


@guard.command("status")
@_place
def guard_status(host: bool, box: str | None) -> None:
    """Say whether the guard stands: on, off, partial (rules were removed) or foreign.

    \b
    sudo loopbox guard status --json
    """
    out = current_output()
    found = _guard_at(box, host, guarding.guard_state)
    out.emit(
        {"where": box or "host", "state": found.state, "rules": found.rules}, lambda: found.state
    )
    if found.state in _GUARD_HINTS and not out.json:
        out.hint(_GUARD_HINTS[found.state])


_GUARD_HINTS = {
    "off": "127.0.0.1 and ::1 may leave this machine by its wires: sudo loopbox guard on",
    "partial": "rules of it were taken out; to mend it: sudo loopbox guard on",
    "foreign": "a table `inet loopbox` stands that is not ours: sudo nft list table inet loopbox",
}


def _guard_at(box: str | None, host: bool, act: Callable[[], T]) -> T:
    if sys.platform != "linux":
        raise HostError(
            "cannot use the guard: it is an nftables table, and those are Linux only",
            hint="elsewhere: loopbox doctor tells whether 127.0.0.1 stays on this machine",
            code="linux-only",
        )
    return _at(box, host, act)


def _set_guard(box: str | None, host: bool, act: Callable[[], bool], *, state: str) -> None:
    """Put it up or take it away, and say so."""
    changed, out = _guard_at(box, host, act), current_output()
    if not changed:
        out.say(f"the guard is {state} already")
    document = {"where": box or "host", "state": state, "changed": changed}
    out.emit(document, lambda: state)
