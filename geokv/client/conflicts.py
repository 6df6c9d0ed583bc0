"""The conflict journals of all nodes put together, and told in words.

Each node tells what it has noted (`geokv.protocol.journal`). A conflict is named by its two writes, so one that several nodes
have noted, also in several datacenters, is here once. Who brings a loser back tells the nodes that noted the conflict.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from geokv.client.results import PutResult
from geokv.core.cells.operation import DELETE, TAKING
from geokv.core.cells.wire import decode_operation
from geokv.core.hlc import hlc_ms
from geokv.core.limits import LOSER_BYTES_MAX
from geokv.errors import GeokvError, InvalidRequest, Unavailable
from geokv.protocol.requests import AdminRequest

RULES: Final = {
    "lww": "the later version stands",
    "register_lww": "the later stamp is shown, the other value stays until a write has seen it",
    "siblings": "both values are kept until a put has seen them",
    "register_mv": "both values are shown until a write has seen them",
    "flag_dw": "disabling wins",
    "set_rw": "removing wins",
    "sorted_set": "the highest score stands",
    "map_rr": "the rule of the field's type decides",
}
OUTLIVED: Final = "what takes away leaves what it had not seen"
"""The rule of every policy but lww, where the loser took something away."""
_PUT_BACK: Final = frozenset({"lww", "register_lww", "register_mv", "siblings"})
"""Policies whose journal has values; under the others it has operations."""
_FAMILIES: Final = (_PUT_BACK, frozenset({"set_rw", "set_aw"}), frozenset({"flag_dw", "flag_ew"}))


def question(namespace: str | None, key: bytes | None) -> dict[str, Any]:
    """The arguments of the verb `conflicts`."""
    asked: dict[str, Any] = {} if namespace is None else {"namespace": namespace}
    return asked if key is None else asked | {"key_base64": b64encode(key).decode()}


def put_together(said: Mapping[str, dict[str, Any] | GeokvError]) -> dict[str, Any]:
    """What the nodes answered as one: `conflicts` (oldest first), `silent` (nodes without an answer), `dropped`.

    Raises what a node answered where none has anything to say.
    """
    answers = {name: one for name, one in said.items() if not isinstance(one, GeokvError)}
    if not answers:
        failures = [one for one in said.values() if isinstance(one, GeokvError)]
        raise next((one for one in failures if isinstance(one, InvalidRequest)), failures[0] if failures else Unavailable())
    found: dict[str, dict[str, Any]] = {}
    for name, answer in sorted(answers.items()):
        for conflict in answer["conflicts"]:
            known = found.setdefault(conflict["id"], conflict | {"noted_by": []})
            known["noted_by"].append(name)
            known["noted_ms"] = min(known["noted_ms"], conflict["noted_ms"])
            _learn_stamps(known, conflict)
            known["restored"] = _both(known.get("restored", ()), conflict.get("restored", ()))
    shown = sorted((_decoded(one) for one in found.values()), key=lambda one: (one["noted_ms"], one["id"]))
    dropped = sum(answer["dropped"] for answer in answers.values())
    return {"conflicts": shown, "silent": sorted(set(said) - set(answers)), "dropped": dropped}


def _both(some: Iterable[dict[str, Any]], more: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The writes that brought a loser back, each once, oldest first."""
    found: dict[str, dict[str, Any]] = {}
    for one in sorted((*some, *more), key=lambda one: (one["noted_ms"], one["version"])):
        found.setdefault(one["version"], one)
    return list(found.values())


def _learn_stamps(known: dict[str, Any], conflict: dict[str, Any]) -> None:
    """Cells of dots carry no stamps: each datacenter knows that of the write which came to it, together they know both."""
    told = {(party["run"], party["number"]): party["version"] for party in (conflict["winner"], conflict["loser"])}
    for side in ("winner", "loser"):
        party = known[side]
        if party["version"] is None:
            known[side] = party | {"version": told[party["run"], party["number"]]}
    stamps = [int(known[side]["version"] or 0) for side in ("winner", "loser")]
    if known["apart_ms"] is None and all(stamps):
        known["apart_ms"] = abs(hlc_ms(stamps[0]) - hlc_ms(stamps[1]))


def _decoded(conflict: dict[str, Any]) -> dict[str, Any]:
    """A conflict with its key and values as bytes, and in words."""
    tree = dict(conflict)
    tree["key"] = b64decode(tree.pop("key_base64"))
    for side in ("winner", "loser"):
        party = dict(tree[side])
        packed = party.pop("value_base64")
        party["value"] = None if packed is None else b64decode(packed)
        if tree["policy"] not in _PUT_BACK:
            _tell_operation(party)
        tree[side] = party
    tree["is_outlived"] = tree["policy"] != "lww" and _takes_away(tree["loser"])
    tree["restored"] = [one | {"words": _words_of_restored(tree, one)} for one in tree["restored"]]
    tree["words"] = words_of(tree)
    return tree


def _tell_operation(party: dict[str, Any]) -> None:
    """In `value` in words; as it is in `operation`, None where the journal has only its beginning, or an older form of it; and
    what it is called in `does`.
    """
    packed, party["operation"], party["does"] = party["value"], None, ""
    try:
        name, arguments, path, _ = decode_operation(packed)
    except InvalidRequest:
        party["value"] = b"an operation of %d bytes" % party["value_bytes"]
        return
    party["operation"], party["does"] = packed, name
    parts = [name.encode(), *[one if isinstance(one, bytes) else str(one).encode() for one in arguments]]
    field = b".".join([step for step, _ in path])
    party["value"] = b" ".join([field + b":", *parts] if path else parts)


def _takes_away(party: Mapping[str, Any]) -> bool:
    return bool(party["is_delete"] or party.get("does") in TAKING)


def words_of(conflict: Mapping[str, Any]) -> str:
    """One decision, told."""
    winner, loser = conflict["winner"], conflict["loser"]
    when = _when(conflict["noted_ms"])
    apart = f" {conflict['apart_ms']} ms apart" if conflict["apart_ms"] is not None else ""
    met = f"{when}: {_name(winner)} and {_name(loser)} wrote this key{apart}, and neither had seen the other."
    is_outlived = conflict["is_outlived"]
    rule = f"Policy {conflict['policy']}: {OUTLIVED if is_outlived else RULES.get(conflict['policy'], 'its rule decides')}."
    if conflict["outcome"] == "kept":
        return f"{met} {rule} They are {_value(winner)} and {_value(loser)}."
    back = f"{'Do it again' if is_outlived else 'Bring it back'} with: geokv conflicts restore {conflict['id']}"
    if conflict["restored"]:
        back = f"It was {'done again' if is_outlived else 'brought back'} since."
    if is_outlived:
        lost = f"{'delete' if loser['is_delete'] else _value(loser)} of {_name(loser)}"
        return f"{met} {rule} So {_value(winner)} of {_name(winner)} won over a concurrent {lost}. {back}"
    gone = "was discarded" if conflict["policy"] == "lww" else "is hidden"
    return f"{met} {rule} So {_value(winner)} of {_name(winner)} won, and {_value(loser)} of {_name(loser)} {gone}. {back}"


def _words_of_restored(conflict: Mapping[str, Any], restored: Mapping[str, Any]) -> str:
    """A loser that came back, told."""
    what = f"{_value(conflict['loser'])} of {_name(conflict['loser'])}"
    return (
        f"{_when(restored['noted_ms'])}: {what} was brought back by a new write of {_name(restored)},"
        f" version {restored['version']} (restored from conflict {conflict['id']})."
    )


def history(conflicts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Conflicts and the writes that brought their losers back (`kind`: "conflict", "restore"), in the order of their times."""
    told: list[dict[str, Any]] = []
    for one in conflicts:
        told.append({"kind": "conflict", **one})
        same = {name: one[name] for name in ("id", "namespace", "key", "policy")}
        told += [{"kind": "restore", **same, "value": one["loser"]["value"], **back} for back in one["restored"]]
    return sorted(told, key=lambda one: one["noted_ms"])


def _when(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC).strftime('%Y-%m-%d %H:%M:%S.%f')[:-3]} UTC"


def _name(party: Mapping[str, Any]) -> str:
    return f"{party['dc']} ({party['node']})"


def _value(party: Mapping[str, Any]) -> str:
    if party["is_delete"]:
        return "a delete"
    text = repr(party["value"].decode("utf-8", "backslashreplace"))
    return text if len(text) <= 80 else f"{text[:80]}… ({party['value_bytes']} bytes)"


def restorable(conflict: Mapping[str, Any]) -> tuple[bytes, bytes | None, bool]:
    """(key, value, whether that is an operation) of the write that brings a loser back; value None: it was a delete.

    Raises InvalidRequest where none can.
    """
    loser, is_operation = conflict["loser"], conflict["policy"] not in _PUT_BACK
    value = loser["operation"] if is_operation else loser["value"]
    if len(value or b"") < loser["value_bytes"]:
        raise InvalidRequest(
            f"of the loser's {loser['value_bytes']} bytes the journal kept no more than {LOSER_BYTES_MAX}: it cannot come back"
        )
    return conflict["key"], value, is_operation


def restored_by(conflict: Mapping[str, Any], done: PutResult) -> dict[str, AdminRequest]:
    """What the nodes that noted a conflict are told of the write that brought its loser back, by their names."""
    told = {"namespace": conflict["namespace"], "id": conflict["id"], "dc": done.dc, "node": done.coordinator}
    told |= {"version": str(done.version)}
    return {name: AdminRequest("conflict_restored", told, node=name) for name in conflict.get("noted_by", ())}


# --- what if --------------------------------------------------------------------------------------------------------


def what_if(conflict: Mapping[str, Any], policy: str) -> dict[str, Any]:
    """What would have become of a conflict under another policy.

    `shown`: the values that a reader would see (of operations: the one that would stand); `lost`: what would be gone;
    None where the journal does not know the stamps that would decide. Raises InvalidRequest for a policy under which what the
    journal has cannot be.
    """
    family = next((one for one in _FAMILIES if conflict["policy"] in one), frozenset({conflict["policy"]}))
    if policy not in family:
        what = "values that were put" if family is _PUT_BACK else f"operations on a {conflict['policy']}"
        names = ", ".join(sorted(family))
        raise InvalidRequest(f"the journal has {what}: they cannot be replayed under {policy!r}, choose one of {names}")
    if family is not _PUT_BACK:  # of an addition and a removal, or two settings of a flag, each policy has one stand
        is_same = policy == conflict["policy"] or conflict["loser"].get("does") == DELETE  # a delete wins under none
        stands, falls = ("winner", "loser") if is_same else ("loser", "winner")
        known = {"id": conflict["id"], "key": conflict["key"]}
        return known | {"shown": [conflict[stands]["value"]], "lost": [conflict[falls]["value"]]}
    winner, loser = conflict["winner"], conflict["loser"]
    stamps = [int(one["version"]) if one["version"] else None for one in (winner, loser)]
    if policy in ("lww", "register_lww") and stamps[0] is not None and stamps[1] is not None and stamps[1] > stamps[0]:
        winner, loser = loser, winner
    parties = [winner] if policy in ("lww", "register_lww") else [winner, loser]
    lost = [loser["value"]] if policy == "lww" and not loser["is_delete"] else []
    is_known = policy in ("siblings", "register_mv") or conflict["policy"] in ("lww", "register_lww")
    return {
        "id": conflict["id"],
        "key": conflict["key"],
        "shown": [one["value"] for one in parties if not one["is_delete"]] if is_known or all(stamps) else None,
        "lost": lost if is_known or all(stamps) else None,
    }
