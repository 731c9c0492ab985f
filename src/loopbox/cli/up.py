"""`loopbox up`: makes everything in loopbox.toml true, be it services or a lab.

Owns: the command, and finding out which of the two the file declares.
Must never: start anything itself; `services` and `lab_runner_commands` do.

Example::

    loopbox up
"""

from __future__ import annotations

from pathlib import Path

import click

from loopbox.cli import asking
from loopbox.cli.output import current_output
from loopbox.errors import ConfigError
from loopbox.kernel.projects import read_project, read_settings_file
from loopbox.settings import ProjectSettings


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--name", help="The box's or lab's name; otherwise the project's.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    help="Seconds for a lab's routers to find each other.",
)
def up(file: Path | None, name: str | None, timeout: float) -> int:
    """Make everything in loopbox.toml true and show the services' logs.

    Ctrl-C ends the services it started. A second `up` leaves what runs alone. A lab (a file with
    boxes and links) stays up: end it with `loopbox down`. With --json each line about services is
    an object with the `event` it tells of: line, ready, running, ended, up.

    \b
    loopbox up
    loopbox up ../shop/loopbox.toml
    loopbox up examples/labs/triangle.toml
    """
    directory, settings, source = _read(file)
    if settings.lab:
        from loopbox.cli.lab_runner_commands import up as lab_up  # noqa: PLC0415

        return lab_up(source, name=name, timeout=timeout, out=current_output())
    if not settings.services:
        raise ConfigError(
            f"cannot bring up `{source}`: it declares no services",
            hint='add for example: [services.web] with run = "npm run dev" and ready = 3000',
        )
    from loopbox.cli.services import bring_up  # noqa: PLC0415  asyncio: 30 ms, and no lab's

    return bring_up(
        directory,
        settings,
        name=name,
        file=None if file is None else source,
        out=current_output(),
    )


def _read(file: Path | None) -> tuple[Path, ProjectSettings, Path]:
    if file is not None:
        if file.is_dir():
            file = file / "loopbox.toml"
        return file.resolve().parent, read_settings_file(file), file.resolve()
    project = read_project(Path(asking.here()))
    if project.settings_file is None:
        raise ConfigError(
            "cannot bring up this directory: there is no loopbox.toml here or above",
            hint='write one, for example: [services.web] with run = "npm run dev", ready = 3000',
        )
    return project.settings_file.parent, project.settings, project.settings_file
