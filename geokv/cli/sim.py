"""`geokv sim`: the simulator, one seed or many."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import click

from geokv.cli import exits
from geokv.cli.output import console, print_json, print_table

OK = "ok"


@click.group(short_help="Run the simulator: a whole cluster from one seed.")
def sim() -> None:
    """Run the simulator: a whole cluster, its network, disks, clocks and clients, from one seed."""


@sim.command("run")
@click.option("--seed", type=click.IntRange(min=0), required=True, help="What everything is drawn from.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def run(seed: int, as_json: bool) -> int:
    """Run one seed; the same seed gives the same run. Exit code 1 where a checker found something."""
    from geokv.sim.run import run as run_seed

    result = run_seed(seed)
    if as_json:
        print_json(result.as_dict())
    else:
        click.echo(
            f"seed {result.seed}: {result.operations} operations, {result.virtual_seconds:.1f} s of virtual time in "
            f"{result.real_seconds:.1f} s, digest {result.digest}\n"
        )
        print_table(("checker", "verdict"), result.checkers.items())
        click.echo()
        print_table(("outcome", "operations"), result.outcomes.items())
        click.echo()
        print_table(("fault", "times"), result.faults.items())
    return exits.DONE if result.is_ok else exits.EXPECTATION_FAILED


@sim.command("soak")
@click.option("--fixed", type=click.IntRange(min=0), default=20, show_default=True, help="The seeds 1 to this.")
@click.option("--drawn", type=click.IntRange(min=0), default=0, show_default=True, help="So many other seeds besides.")
@click.option("--drawn-from", default="", metavar="TEXT", help="What the others are drawn from, such as a commit.")
@click.option("--processes", type=click.IntRange(min=1), help="How many at once; one per core where not given.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def soak(fixed: int, drawn: int, drawn_from: str, processes: int | None, as_json: bool) -> int:
    """Run many seeds. Exit code 1, with the command that repeats it, for each that failed."""
    from geokv.sim.run import soak as run_many

    started_s = time.monotonic()
    with _Bar("simulating", as_json) as bar:
        failures = run_many(fixed, drawn, drawn_from, processes, bar.advance)
    seconds = time.monotonic() - started_s
    if as_json:
        print_json(
            {"runs": fixed + drawn, "failures": [asdict(failure) for failure in failures], "real_seconds": round(seconds, 3)}
        )
    else:
        click.echo(f"{fixed + drawn} runs in {seconds:.1f} s, {len(failures)} failed")
        for failure in failures:
            click.echo(f"\n{failure.command}")
            for checker, verdict in failure.failed.items():
                click.echo(f"  {checker}: {verdict}")
    return exits.EXPECTATION_FAILED if failures else exits.DONE


class _Bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, text: str, is_quiet: bool) -> None:
        screen = console(to_stderr=True)
        self._bar: Any = None
        if screen.is_terminal and not is_quiet:
            from rich.progress import Progress

            self._bar = Progress(console=screen, transient=True)
            self._task = self._bar.add_task(text, total=None)

    def advance(self, done: int, of: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=of)

    def __enter__(self) -> _Bar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
