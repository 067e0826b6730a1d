"""`upwell worker`."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Literal

import click

from streams.cli.context import settings_from, spec_from
from streams.settings import MOST_PROCESSES, Settings


class Processes(click.ParamType):
    """`auto` or a number."""

    name = "n|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else click.IntRange(0, MOST_PROCESSES).convert(value, param, ctx)


@click.command()
@click.option("--slot", help="Stable id of this worker; default UPWELL_WORKER_SLOT, else host and number.")
@click.option(
    "--processes",
    type=Processes(),
    help="Supervise so many worker processes; auto: as many as fit the machine; 0: be the worker. "
    "Default UPWELL_WORKER_PROCESSES.",
)
@click.pass_context
def worker(ctx: click.Context, slot: str | None, processes: int | Literal["auto"] | None) -> None:
    """Run workers until SIGTERM: they take changes in, and embed what is pending.

    Supervised workers get the slots SLOT-0, SLOT-1, ...; one that ends is started again, unless it ended with 0 or 2.
    """
    settings = settings_from(ctx)
    given = {"slot": slot, "processes": processes}
    changed = {name: value for name, value in given.items() if value is not None}
    settings = settings.model_copy(update={"worker": settings.worker.model_copy(update=changed)})
    from streams import logs
    from streams.app import run_worker
    from streams.fit import fitted

    logs.set_up()
    settings = fitted(settings)
    if settings.worker.processes:
        supervise(settings, [sys.executable, "-m", "streams.cli", "--spec", str(spec_from(ctx)), "worker"])
    else:
        run_worker(settings)


def supervise(settings: Settings, command: list[str]) -> None:
    """Run `command` for each slot, tied to this process. Raises Halt."""
    from infra.stack.processes import tied_to
    from streams.app import supervised_slots
    from streams.fit import cores
    from streams.supervisor import Supervisor

    slots = supervised_slots(settings)
    # Each model would take all cores; together they would take turns on them.
    threads = settings.worker.threads or max(1, cores() // len(slots))
    environment = {**os.environ, "UPWELL_WORKER_THREADS": str(threads)}

    def start(slot: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, "--slot", slot, "--processes", "0"],
            env=environment,
            stdin=subprocess.DEVNULL,
            preexec_fn=tied_to(os.getpid()),  # noqa: PLW1509  the supervisor has one thread
        )

    Supervisor(slots, start).run()
