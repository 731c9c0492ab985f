"""Help and completion of `run`, `exec` and `shell`. What they do is `hot`'s.

Must never: be reached with a command to run; `hot` has taken those before.
"""

from __future__ import annotations

import click

from loopbox.cli import asking

_PASS = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.command(context_settings=_PASS, options_metavar="[OPTIONS] --")
@click.option("--name", help="The box's name; otherwise the project's.")
@click.option("--branch", help='Put this branch in front of the name; "" for none.')
@click.option(
    "--forward", multiple=True, metavar="PORT", help="This port leads to the host's loopback."
)
@click.option(
    "--egress",
    metavar="POLICY",
    type=click.Choice(["open", "local", "none", "filter"]),
    help="What the box may reach outside.",
)
@click.option("--keep", is_flag=True, help="The box stays when its last process has gone.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="CMD...")
def run(**_options: object) -> None:
    """Run a program in this project's box, on a loopback of its own.

    The box is made when there is none. Terminal, signals, working directory, user and exit code
    are the program's own. 127: no such command; 126: it cannot be executed; 125: loopbox itself
    failed.

    \b
    loopbox run -- npm run dev
    loopbox run --forward 5432 -- python manage.py runserver
    loopbox run --name api --keep -- ./server
    """


@click.command(name="exec", context_settings=_PASS)
@click.argument("name", shell_complete=asking.complete_box)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- CMD...")
def exec_(**_options: object) -> None:
    """Run a program in a box that is up.

    \b
    loopbox exec shop -- psql -h localhost
    """


@click.command(context_settings=_PASS)
@click.argument("name", required=False, shell_complete=asking.complete_box)
def shell(**_options: object) -> None:
    """Open your shell in a box; this project's without NAME, made when there is none.

    \b
    loopbox shell
    loopbox shell shop
    """
