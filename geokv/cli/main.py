"""The command `geokv`: one line on stderr and an exit code for everything that goes wrong.

Invariants: no traceback for anything that a user or an operator can cause. What is not a GeokvError is a fault of
this program and does show one.

Not here: what the commands do; each has a module of its own, imported when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from geokv.cli import exits
from geokv.cli.lazy import Lazy, LazyGroup
from geokv.errors import GeokvError

COMMANDS = {
    "serve": Lazy("geokv.cli.serve", "serve", "Run one node."),
    "get": Lazy("geokv.cli.kv", "get", "Write the value of a key to standard output."),
    "put": Lazy("geokv.cli.kv", "put", "Write a value."),
    "delete": Lazy("geokv.cli.kv", "delete", "Delete a key."),
    "update": Lazy("geokv.cli.update", "update", "Count, add, remove: one operation on a key."),
    "explain": Lazy("geokv.cli.conflicts", "explain", "Tell what concurrent writes did to a key."),
    "conflicts": Lazy("geokv.cli.conflicts", "conflicts", "Show the conflicts that were noted, and bring losers back."),
    "gc": Lazy("geokv.cli.gc", "gc", "Show what waits to be collected, and who holds it up."),
    "rights": Lazy("geokv.cli.rights", "rights", "Move the rights of bounded counters away from what leaves."),
    "namespace": Lazy("geokv.cli.namespace", "namespace", "Create, list, show, alter and delete namespaces."),
    "status": Lazy("geokv.cli.status", "status", "Show the nodes, the ring and the lag between datacenters."),
    "storage": Lazy("geokv.cli.storage", "storage", "Verify, inspect, compact a stopped node's folder; pace a running node's."),
    "backup": Lazy("geokv.cli.backup", "backup", "Back a whole cluster up while it runs; verify and restore."),
    "lab": Lazy("geokv.cli.lab", "lab", "Run several datacenters on this machine."),
    "wan": Lazy("geokv.cli.wan", "wan_group", "Show and change the links between the datacenters of a lab."),
    "sim": Lazy("geokv.cli.sim", "sim", "Run the simulator: a whole cluster from one seed."),
    "bench": Lazy("geokv.cli.bench", "bench", "Put load on a cluster and measure."),
}


def _tell_version(context: click.Context, _: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        from geokv.version import __version__  # looked up by whoever asks alone

        click.echo(f"geokv {__version__}")
        context.exit()


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 expectation failed, 2 usage, 3 not found, 4 unavailable, 5 outcome unknown.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_tell_version, help="Show the version and exit."
)
def geokv() -> None:
    """A key-value store that lives in several datacenters at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        # Commands that end otherwise than well say so by ctx.exit, which comes back here as a value.
        result = geokv.main(args=arguments, prog_name="geokv", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else exits.DONE
    except click.UsageError as error:
        return _complain(_with_help(error), exits.USAGE)
    except click.ClickException as error:
        return _complain(error.format_message(), exits.USAGE)
    except click.Abort:
        return _complain("interrupted", exits.INTERRUPTED)
    except KeyboardInterrupt:
        return _complain("interrupted", exits.INTERRUPTED)
    except (BrokenPipeError, SystemExit):  # click turns the one into the other; nothing else here exits by itself
        return _reader_gone()
    except OSError as error:  # a place that cannot be written, a descriptor too many: the system's own words
        return _complain(str(error), exits.EXPECTATION_FAILED)
    except GeokvError as error:
        advice = exits.advice_for(error)
        said = str(error) or type(error).__name__
        return _complain(f"{said} ({advice})" if advice else said, exits.code_of(error))


def _with_help(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx is not None else "geokv"
    return f"{error.format_message().rstrip('.')}; see `{command} --help`"


def _complain(text: str, code: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"geokv: {' '.join(text.split())}\n")
    return code


def _reader_gone() -> int:
    """Whoever read our output has enough (`geokv get … | head -c 1`): end quietly, as other programs do."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exits.DONE
