"""`geokv get`, `put` and `delete`: one key."""

from __future__ import annotations

import json
import sys
from base64 import b64decode, b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geokv.cli import exits
from geokv.cli.addresses import Place, place_options
from geokv.cli.output import plain, print_json, text_or_base64

if TYPE_CHECKING:
    from geokv.client import GetResult, PutResult

LEVEL_HELP = "ONE, TWO, QUORUM, ALL, EACH_QUORUM (writes), LOCAL_ONE, LOCAL_QUORUM; the namespace's where it is not given."
option_level = click.option("--consistency", metavar="LEVEL", help=LEVEL_HELP)
option_hex = click.option("--key-hex", is_flag=True, help="KEY is written in hexadecimal.")
option_json = click.option("--json", "as_json", is_flag=True, help="One JSON document.")


def _read_context(ctx: click.Context, parameter: click.Parameter, text: str | None) -> bytes | None:
    try:
        return None if text is None else b64decode(text, validate=True)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not base64: give the context that get --json or put --json printed") from None


option_context = click.option(
    "--context", metavar="BASE64", callback=_read_context, help="Replace what was read with this context."
)


@click.command(short_help="Write the value of a key to standard output.")
@click.argument("namespace")
@click.argument("key")
@option_hex
@option_level
@click.option("--r", type=click.IntRange(1), metavar="N", help="Answers from this many replicas, instead of a level.")
@click.option("--repair-before", is_flag=True, help="Answer only what a quorum holds.")
@option_json
@place_options
def get(
    namespace: str,
    key: str,
    key_hex: bool,
    consistency: str | None,
    r: int | None,
    repair_before: bool,
    as_json: bool,
    place: Place,
) -> int:
    """Write the value of KEY in NAMESPACE to standard output, byte for byte and without a newline.

    Exit code 3 where there is none. Of a key with concurrent values --json shows all, and the context that replaces them.
    """
    raw = key_of(key, key_hex)
    with place.client() as client:
        got = client.namespace(namespace).get(raw, consistency=consistency, r=r, repair="before" if repair_before else None)
    if as_json:
        print_json(_got(namespace, raw, got))
    elif len(got.siblings) > 1:
        click.echo(
            f"geokv: the key has {len(got.siblings)} concurrent values: get --json shows them, and put --context, with"
            " the context that it shows, replaces them",
            err=True,
        )
        return exits.EXPECTATION_FAILED
    elif got.found:
        sys.stdout.buffer.write(_bytes_of(got.value))
        sys.stdout.buffer.flush()
    else:
        click.echo(f"geokv: no key {_shown(raw)} in namespace {namespace}", err=True)
    return exits.DONE if got.found else exits.NOT_FOUND


@click.command(short_help="Write a value.")
@click.argument("namespace")
@click.argument("key")
@click.argument("value")
@option_hex
@option_level
@click.option("--w", type=click.IntRange(1), metavar="N", help="On this many replicas, instead of a level.")
@click.option("--ttl", type=float, metavar="SECONDS", help="Gone by itself after so long.")
@click.option("--replicated-to", type=click.IntRange(1), metavar="N", help="In this many datacenters before the answer.")
@option_context
@option_json
@place_options
def put(
    namespace: str,
    key: str,
    value: str,
    key_hex: bool,
    consistency: str | None,
    w: int | None,
    ttl: float | None,
    replicated_to: int | None,
    context: bytes | None,
    as_json: bool,
    place: Place,
) -> int:
    """Write VALUE under KEY in NAMESPACE.

    VALUE is text, or - for standard input, or @FILE for a file (@@ begins a text with an @).
    """
    raw = key_of(key, key_hex)
    payload = _value(value)
    with place.client() as client:
        handle = client.namespace(namespace)
        done = handle.put(raw, payload, consistency=consistency, w=w, ttl=ttl, replicated_to=replicated_to, context=context)
    return tell(namespace, raw, done, as_json, "written")


@click.command(short_help="Delete a key.")
@click.argument("namespace")
@click.argument("key")
@option_hex
@option_level
@click.option("--w", type=click.IntRange(1), metavar="N", help="On this many replicas, instead of a level.")
@click.option("--replicated-to", type=click.IntRange(1), metavar="N", help="In this many datacenters before the answer.")
@option_context
@option_json
@place_options
def delete(
    namespace: str,
    key: str,
    key_hex: bool,
    consistency: str | None,
    w: int | None,
    replicated_to: int | None,
    context: bytes | None,
    as_json: bool,
    place: Place,
) -> int:
    """Delete KEY in NAMESPACE; it need not exist."""
    raw = key_of(key, key_hex)
    with place.client() as client:
        handle = client.namespace(namespace)
        done = handle.delete(raw, consistency=consistency, w=w, replicated_to=replicated_to, context=context)
    return tell(namespace, raw, done, as_json, "deleted")


def key_of(text: str, is_hex: bool) -> bytes:
    if not is_hex:
        return text.encode("utf-8", "surrogateescape")  # as the shell gave it
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not hexadecimal: two digits of 0-9, a-f per byte", param_hint="KEY") from None


def _value(text: str) -> bytes:
    if text == "-":
        return sys.stdin.buffer.read()
    if text.startswith("@@"):
        text = text[1:]
    elif text.startswith("@"):
        try:
            return Path(text[1:]).read_bytes()
        except OSError as error:
            raise click.BadParameter(f"{text[1:]} cannot be read: {error.strerror}", param_hint="VALUE") from error
    return text.encode("utf-8", "surrogateescape")


def tell(namespace: str, key: bytes, done: PutResult, as_json: bool, verb: str, more: dict[str, Any] | None = None) -> int:
    """Say what was reached; `more`: what JSON says besides. Fewer datacenters than asked for is an expectation that failed,
    though the write stands.
    """
    achieved = done.achieved
    is_pending = done.outcome.name == "PENDING"
    if as_json:
        print_json(_put(namespace, key, done) | (more or {}))
    else:
        dcs = f"{achieved.dcs} datacenter{'s' if achieved.dcs != 1 else ''}"
        replicas = f"{achieved.replicas} replica{'s' if achieved.replicas != 1 else ''}"
        note = ""
        if is_pending:
            note = "; it is durable here, the other datacenters asked for have not acknowledged it yet"
        elif done.outcome.name == "SUPERSEDED":
            note = "; a newer write of the key won over it"
        click.echo(f"{verb}: version {done.version}, {replicas} here, {dcs} ({achieved.level.name}){note}", err=is_pending)
    return exits.EXPECTATION_FAILED if is_pending else exits.DONE


def _bytes_of(value: Any) -> bytes:
    """A value as it is stored; what only a policy shows (numbers, sets) as JSON."""
    return value if isinstance(value, bytes) else (json.dumps(plain(value), ensure_ascii=False) + "\n").encode()


def _got(namespace: str, key: bytes, got: GetResult) -> dict[str, Any]:
    shown: dict[str, Any] = {"namespace": namespace, **text_or_base64("key", key), "found": got.found}
    if got.policy != "lww":
        values = [plain(one) for one in got.siblings]
        shown |= {"policy": got.policy, "value": values[0] if len(values) == 1 else None, "siblings": values}
        if got.policy == "counter_bounded":
            shown["rights"] = dict(got.siblings[0].rights) if got.found else {}
    else:
        shown |= {**text_or_base64("value", got.value), "version": str(got.version) if got.found else None}
    return {**shown, "context": b64encode(got.context).decode(), **_facts(got)}


def _put(namespace: str, key: bytes, done: PutResult) -> dict[str, Any]:
    return {
        "namespace": namespace,
        **text_or_base64("key", key),
        "outcome": done.outcome.name,
        "version": str(done.version),
        "context": b64encode(done.context).decode(),
        **_facts(done),
    }


def _facts(result: GetResult | PutResult) -> dict[str, Any]:
    achieved = result.achieved
    return {
        "achieved": {"level": achieved.level.name, "replicas": achieved.replicas, "dcs": achieved.dcs},
        "coordinator": result.coordinator,
        "dc": result.dc,
        "elapsed_ms": round(result.elapsed * 1000, 3),
    }


def _shown(key: bytes) -> str:
    return repr(key.decode("utf-8", "backslashreplace"))
