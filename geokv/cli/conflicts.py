"""`geokv explain` and `geokv conflicts`: what concurrent writes did to each other, in words, and how to undo it.

The journals of all nodes are put together by the client (`geokv.client.conflicts`).
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from geokv.cli import exits
from geokv.cli.addresses import Place, place_options
from geokv.cli.kv import key_of, option_hex, option_json, tell
from geokv.cli.output import plain, print_json, print_table

if TYPE_CHECKING:
    from geokv.client import Client

# --- gathering ------------------------------------------------------------------------------------------------------


def gathered(client: Client, namespace: str | None, key: bytes | None = None) -> dict[str, Any]:
    """What all nodes have noted, as JSON can carry it."""
    noted = client.conflicts(namespace, key)
    return noted | {"conflicts": [shown(one) for one in noted["conflicts"]]}


def shown(conflict: dict[str, Any]) -> dict[str, Any]:
    """A conflict, or what brought its loser back, as JSON can carry it."""
    tree = conflict | {name: plain(conflict[name]) for name in ("key", "value") if name in conflict}
    for side in {"winner", "loser"} & conflict.keys():
        tree[side] = {name: plain(value) for name, value in conflict[side].items() if name not in ("operation", "does")}
    return tree


# --- explain --------------------------------------------------------------------------------------------------------


@click.command(short_help="Tell what concurrent writes did to a key.")
@click.argument("namespace")
@click.argument("key")
@option_hex
@option_json
@place_options
def explain(namespace: str, key: str, key_hex: bool, as_json: bool, place: Place) -> int:
    """Tell, in words, how KEY in NAMESPACE became what it is where concurrent writes met.

    Exit code 3 where the key is not there and nothing was noted of it.
    """
    from geokv.client.conflicts import history

    raw = key_of(key, key_hex)
    with place.client() as client:
        noted = client.conflicts(namespace, raw)
        got = client.namespace(namespace).get(raw)
        was = next((one for one in client.namespaces() if one["name"] == namespace), {})
    values = [plain(one) for one in got.siblings]
    decisions = [shown(one) for one in history(noted["conflicts"])]
    words = [one["words"] for one in decisions]
    earlier = list(was.get("earlier_policies") or ())
    if earlier:
        words.append(_changed(got.policy, was))
    words.append(_now(got.policy, values))
    if noted["silent"]:
        words.append(f"Not asked: {', '.join(noted['silent'])} did not answer, and may have noted more.")
    if as_json:
        facts = {
            "namespace": namespace,
            "key": plain(raw),
            "policy": got.policy,
            "earlier_policies": earlier,
            "found": got.found,
            "values": values,
        }
        print_json({**facts, "decisions": decisions, "silent": noted["silent"], "words": words})
    else:
        for one in words:
            click.echo(one)
    return exits.DONE if got.found or noted["conflicts"] else exits.NOT_FOUND


def _changed(policy: str, was: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(was["policy_changed_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    before = ", ".join(was["earlier_policies"])
    return (
        f"{when}: in {was['policy_changed_dc']} the policy of this namespace was changed to {policy}; before it was {before}."
        f" What was written then is shown as a {policy} shows it, until a later write has seen it."
    )


def _now(policy: str, values: list[Any]) -> str:
    if not values:
        return f"Now there is nothing under it (policy {policy})."
    shown = [text if len(text := repr(one)) <= 200 else f"{text[:200]}…" for one in values]
    what = f"is {shown[0]}" if len(values) == 1 else f"has {len(values)} values: {', '.join(shown)}"
    return f"Now it {what} (policy {policy})."


# --- conflicts ------------------------------------------------------------------------------------------------------


@click.group()
def conflicts() -> None:
    """Show the conflicts that were noted, and bring losers back."""


@conflicts.command("tail")
@click.argument("namespace", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, the newest.")
@option_json
@place_options
def tail(namespace: str | None, limit: int, as_json: bool, place: Place) -> None:
    """Show the newest conflicts, of NAMESPACE or of all."""
    with place.client() as client:
        noted = gathered(client, namespace)
    newest = noted["conflicts"][-limit:]
    if as_json:
        print_json({**noted, "conflicts": newest})
        return
    columns = ("id", "namespace", "key", "outcome", "won", "lost", "noted by")
    rows = [
        (
            one["id"],
            one["namespace"],
            str(one["key"]),
            one["outcome"],
            one["winner"]["dc"],
            one["loser"]["dc"],
            one["noted_by"][0],
        )
        for one in newest
    ]
    print_table(columns, rows)


@conflicts.command("top")
@click.argument("namespace", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many keys.")
@option_json
@place_options
def top(namespace: str | None, limit: int, as_json: bool, place: Place) -> None:
    """Show the keys with the most conflicts in the journal."""
    with place.client() as client:
        noted = gathered(client, namespace)
    counted = Counter((one["namespace"], str(one["key"])) for one in noted["conflicts"])
    rows = [{"namespace": name, "key": key, "conflicts": count} for (name, key), count in counted.most_common(limit)]
    if as_json:
        print_json({"keys": rows, "silent": noted["silent"]})
    else:
        print_table(("namespace", "key", "conflicts"), [tuple(row.values()) for row in rows])


@conflicts.command("stats")
@click.argument("namespace", required=False)
@option_json
@place_options
def stats(namespace: str | None, as_json: bool, place: Place) -> None:
    """Count the conflicts in the journal by namespace, datacenters and outcome."""
    with place.client() as client:
        noted = gathered(client, namespace)
    counted = Counter(
        (one["namespace"], one["policy"], one["winner"]["dc"], one["loser"]["dc"], one["outcome"]) for one in noted["conflicts"]
    )
    names = ("namespace", "policy", "winner_dc", "loser_dc", "outcome")
    rows = [{**dict(zip(names, group, strict=True)), "conflicts": count} for group, count in sorted(counted.items())]
    if as_json:
        print_json({"stats": rows, "dropped": noted["dropped"], "silent": noted["silent"]})
    else:
        print_table((*names, "conflicts"), [tuple(row.values()) for row in rows])


@conflicts.command("restore")
@click.argument("name", metavar="ID")
@option_json
@place_options
def restore(name: str, as_json: bool, place: Place) -> int:
    """Write the loser of conflict ID again, as a new write that has seen what is there now."""
    with place.client() as client:
        conflict = next((one for one in client.conflicts()["conflicts"] if one["id"] == name), None)
        if conflict is None:
            click.echo(f"geokv: no conflict {name!r} in the journals that answered", err=True)
            return exits.NOT_FOUND
        done = client.restore(conflict)
    before = conflict["restored"]
    if before and not as_json:
        click.echo("It had been restored already, and is written once more:")
        for one in before:
            click.echo(one["words"])
    return tell(conflict["namespace"], conflict["key"], done, as_json, "restored", {"restored_before": before})


@conflicts.command("whatif")
@click.argument("namespace")
@click.option("--policy", required=True, help="For values lww, register_lww, register_mv or siblings; set_aw for set_rw.")
@option_json
@place_options
def whatif(namespace: str, policy: str, as_json: bool, place: Place) -> None:
    """Replay the journal of NAMESPACE under another policy: what would have been shown, and what lost."""
    from geokv.client.conflicts import what_if
    from geokv.core.cells.changed import COMPATIBLE
    from geokv.core.conflict import policy_of

    with place.client() as client:
        noted = client.conflicts(namespace)
    policy_of(policy)
    rows = [{name: plain(value) for name, value in what_if(one, policy).items()} for one in noted["conflicts"]]
    known = [row for row in rows if row["lost"] is not None]
    lost_now = [one for one in noted["conflicts"] if one["policy"] == "lww" and not one["loser"]["is_delete"]]
    summary = {
        "namespace": namespace,
        "policy": policy,
        "conflicts": len(rows),
        "lost_now": len(lost_now),
        "lost_then": sum(bool(row["lost"]) for row in known),
        "not_told": len(rows) - len(known),
    }
    if policy not in {one["policy"] for one in noted["conflicts"]}:
        summary["can_be_changed_from"] = ", ".join(old for old, news in COMPATIBLE.items() if policy in news) or "none"
    if as_json:
        print_json(summary | {"replayed": rows, "silent": noted["silent"]})
    else:
        print_table(("figure", "value"), list(summary.items()))
        print_table(("id", "key", "would show", "would lose"), [[str(one) for one in row.values()] for row in rows[-20:]])
