"""`geokv update`: one operation of a namespace's type on one key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from geokv.cli.addresses import Place, place_options
from geokv.cli.kv import key_of, option_context, option_hex, option_json, option_level, tell

if TYPE_CHECKING:
    from geokv.core.cells.operation import Operation


@click.command(short_help="Count, add, remove: one operation on a key.")
@click.argument("namespace")
@click.argument("key")
@click.argument("operation")
@click.argument("arguments", nargs=-1)
@click.option("--in", "path", multiple=True, metavar="FIELD:TYPE", help="A field of a map; several lead into maps of maps.")
@option_hex
@option_level
@click.option("--w", type=click.IntRange(1), metavar="N", help="On this many replicas, instead of a level.")
@click.option("--replicated-to", type=click.IntRange(1), metavar="N", help="In this many datacenters before the answer.")
@option_context
@option_json
@place_options
def update(
    namespace: str,
    key: str,
    operation: str,
    arguments: tuple[str, ...],
    path: tuple[str, ...],
    key_hex: bool,
    as_json: bool,
    place: Place,
    **options: Any,
) -> int:
    """Do OPERATION with ARGUMENTS on KEY in NAMESPACE: those of the namespace's policy, see docs/conflicts.md.

    For example: geokv update likes post:1 increment 5, or geokv update users 1 write Ada --in name:register_lww. A negative
    number stands behind --.
    """
    from geokv.core.cells.wire import encode_operation

    raw = key_of(key, key_hex)
    with place.client() as client:
        held = next((one for one in client.namespaces() if one["name"] == namespace), None)
        asked = _operation(str(held["policy"]) if held else "lww", operation, arguments, path)
        handle = client.namespace(namespace)
        done = handle.apply(raw, [encode_operation(asked)], {name: one for name, one in options.items() if one is not None})
    return tell(namespace, raw, done, as_json, "done")


def _operation(policy: str, name: str, arguments: tuple[str, ...], path: tuple[str, ...]) -> Operation:
    """Numbers where the type takes numbers, else text. What does not fit the node tells."""
    from geokv.core.cells.operation import Operation, is_amount, is_number
    from geokv.core.cells.policies import CELL_TYPES

    steps = tuple(_step(one) for one in path)
    kind = CELL_TYPES.get(steps[-1][1] if steps else policy)
    checks = kind.signature.get(name, ()) if kind is not None else ()
    values: list[Any] = []
    for index, text in enumerate(arguments):
        is_numeric = index < len(checks) and checks[index] in (is_amount, is_number)
        values.append(_number(text) if is_numeric else text.encode("utf-8", "surrogateescape"))
    if name in ("increment", "decrement") and not values:
        values = [1]
    return Operation(name, tuple(values), steps)


def _step(text: str) -> tuple[bytes, str]:
    field, colon, kind = text.rpartition(":")
    if not colon or not kind:
        raise click.BadParameter(f"{text!r}: write FIELD:TYPE, for example visits:counter_pn", param_hint="--in")
    return field.encode("utf-8", "surrogateescape"), kind


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a number", param_hint="ARGUMENTS") from None
