"""From the states of all nodes at a cut to the states with which they can start together, as one cluster.

The snapshots of a backup are taken within seconds, not at one instant. So they are to each other as the disks of nodes
that lost their power at different moments: what one of them holds of another's past may be missing there. A single
power cut never does that, since what was told was synced. What could not be made good by the nodes themselves is made
good here, before they start:

    what peers had seen of each other     dropped: nobody is behind what was seen of it, all begin from here
    promises, acceptances, choices        each member of a datacenter gets the highest and all that was chosen
    definitions                           known anywhere: known everywhere, and chosen where they come from; a node learns
                                          those that its own state lacks after its engine was opened, as from its log
    closings                              last number and void ones anew, from what the snapshots hold of the stream
    closings that some had forgotten      stand again, until all owners cover them
    who covers what                       no more than that one's own snapshot holds
    the bound of the clocks               the highest of all: nothing is stamped again

Streams themselves need nothing: their origins have ended, each node closes its own at its start, and the numbers that
one owner has and another lacks come from logs, or as cells.

Invariants: a function of its arguments alone, so a cluster may be restored node by node, in different places. Nothing
that any snapshot holds of acknowledged writes is given up. Not here: files (`backup.restore`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from geokv.protocol import control
from geokv.protocol.agreement_forms import LIFE, OWN
from geokv.protocol.catalog import item_of, place_of
from geokv.protocol.closer import ITEM_PREFIX, closing_item, pair_of_item
from geokv.protocol.closing import Pair

Meta = dict[str, Any]
_Item = list[Any]  # item, promised, accepted, chosen: as `ItemState` is kept beside flushed cells
_StreamKey = tuple[int, int, bytes]  # namespace, partition, origin


@dataclass(frozen=True, slots=True)
class Places:
    """Who is where: the datacenter of each node, and for each partition its owners in each datacenter."""

    dc_of: Mapping[str, str]
    owners: Mapping[str, list[tuple[str, ...]]]  # dc -> partition -> nodes

    def everyone(self, partition: int) -> set[str]:
        return {node for owners in self.owners.values() for node in owners[partition]}

    def mine(self, node: str) -> list[int]:
        owners = self.owners[self.dc_of[node]]
        return [partition for partition, nodes in enumerate(owners) if node in nodes]


def reconciled(metas: Mapping[str, Meta], places: Places, cut_ms: int) -> dict[str, Meta]:
    """The states with which the nodes of a restored cluster begin. `metas`: of all its nodes."""
    bound_ms = max([cut_ms + 1, *(meta["bound_ms"] for meta in metas.values())])
    fresh = {
        node: {**meta, "seen": {}, "bound_ms": bound_ms, "streams": [list(stream) for stream in meta["streams"]]}
        for node, meta in metas.items()
    }
    slots = _all_slots(metas)
    values = _settle_closings(fresh, places)
    for dc in sorted(set(places.dc_of.values())):
        _settle_agreement({node: fresh[node] for node in fresh if places.dc_of[node] == dc}, dc, slots, values)
    for node, meta in fresh.items():
        _settle_definitions(meta, metas[node], slots)
    _settle_covers(fresh, places)
    return fresh


# --- agreements -----------------------------------------------------------------------------------------------------


def _all_slots(metas: Mapping[str, Meta]) -> dict[tuple[str, int], bytes]:
    """Every definition that any node knows to be chosen."""
    slots = {(slot[0], slot[1]): slot[2] for meta in metas.values() for slot in meta["slots"]}
    for meta in metas.values():
        for item, _, accepted, is_chosen in meta["agreement"]:
            place = place_of(item)
            if is_chosen and accepted and place is not None:
                slots.setdefault(place, accepted[1])
    return slots


def _settle_agreement(
    members: Mapping[str, Meta], dc: str, slots: Mapping[tuple[str, int], bytes], values: Mapping[Pair, bytes]
) -> None:
    """Let all members of a datacenter hold the highest that any of them does."""
    merged: dict[bytes, _Item] = {}
    for meta in members.values():
        for item, promised, accepted, is_chosen in meta["agreement"]:
            if not _is_of_one(item):
                merged[item] = _higher(merged.get(item), [item, promised, accepted, is_chosen])
    for (where, slot), value in slots.items():
        if where == dc:
            _choose(merged, item_of(dc, slot), value)
    for pair, value in values.items():
        if closing_item(*pair) in merged:
            _choose(merged, closing_item(*pair), value)
    over = _over_everywhere(members)
    kept = [one for item, one in sorted(merged.items()) if not (item.startswith(ITEM_PREFIX) and pair_of_item(item) in over)]
    for meta in members.values():
        meta["agreement"] = [one for one in meta["agreement"] if _is_of_one(one[0])] + [list(one) for one in kept]


def _settle_definitions(meta: Meta, own: Meta, slots: Mapping[tuple[str, int], bytes]) -> None:
    """Let a node know all definitions: its own as it did, with cells beside its state, the others as if its log had them."""
    had = _all_slots({"": own})
    is_new = {item for item, *_ in meta["agreement"] if (place := place_of(item)) is not None and place not in had}
    chosen = [one for one in meta["agreement"] if one[0] in is_new]
    meta["agreement"] = [one for one in meta["agreement"] if one[0] not in is_new]
    every = [[dc, slot, value] for (dc, slot), value in sorted(slots.items())]
    meta["slots"] = [slot for slot in every if (slot[0], slot[1]) in had]
    learned = [[control.SLOT, slot] for slot in every if (slot[0], slot[1]) not in had]
    meta["learned"] = [[control.ACCEPT, chosen]] * bool(chosen) + learned


def _is_of_one(item: bytes) -> bool:
    """Whether it says something of that member alone: FIRST and MEMBER. Marks of lives are for all."""
    return item.startswith(OWN) and not item.startswith(LIFE)


def _higher(held: _Item | None, other: _Item) -> _Item:
    if held is None:
        return list(other)
    accepted = max((one[2] for one in (held, other) if one[2]), key=lambda one: tuple(one[0]), default=None)
    chosen = next((one[2] for one in (held, other) if one[3]), None)
    return [held[0], max(held[1], other[1], key=tuple), chosen or accepted, chosen is not None]


def _choose(merged: dict[bytes, _Item], item: bytes, value: bytes) -> None:
    held = merged.get(item) or [item, [0, ""], None, False]
    ballot = held[2][0] if held[2] else max(held[1], [1, ""], key=tuple)
    merged[item] = [item, held[1], [ballot, value], True]


def _over_everywhere(members: Mapping[str, Meta]) -> set[Pair]:
    """Closings that are over: with `_settle_closings` done, what one owner has forgotten all have."""
    return {(origin, p) for meta in members.values() for origin, partitions in meta["closed"] for p in partitions or ()}


# --- closings -------------------------------------------------------------------------------------------------------


def _settle_closings(metas: Mapping[str, Meta], places: Places) -> dict[Pair, bytes]:
    """Let every closing be over at all owners or stand at all of them; the values of those that stand."""
    over: dict[str, dict[bytes, set[int]]] = {}
    known: dict[Pair, bytes] = {}
    for node, meta in metas.items():
        mine = places.mine(node)
        over[node] = {origin: set(mine if partitions is None else partitions) for origin, partitions in meta["closed"]}
        known.update({(origin, partition): value for origin, partition, value in meta["closings"]})
        for item, _, accepted, is_chosen in meta["agreement"]:
            if is_chosen and accepted and item.startswith(ITEM_PREFIX):
                known.setdefault(pair_of_item(item), accepted[1])
    held = _held(metas)
    pairs = {(origin, p) for closed in over.values() for origin, partitions in closed.items() for p in partitions}
    values: dict[Pair, bytes] = {}
    for pair in sorted(pairs | known.keys()):
        everyone = places.everyone(pair[1])
        forgotten = {node for node in everyone if pair[1] in over[node].get(pair[0], ())}
        if forgotten == everyone:
            continue
        values[pair] = _value(pair, known.get(pair), held, has_covered=bool(forgotten))
        for node in forgotten:
            over[node][pair[0]].discard(pair[1])
            _cover(metas[node], pair, values[pair])
    for node, meta in metas.items():
        meta["closed"] = [[origin, sorted(partitions)] for origin, partitions in sorted(over[node].items()) if partitions]
        mine_set = set(places.mine(node))
        meta["closings"] = [[*pair, value] for pair, value in values.items() if pair[1] in mine_set]
    return values


def _held(metas: Mapping[str, Meta]) -> dict[Pair, dict[int, list[tuple[int, set[int]]]]]:
    """Per origin and partition, and there per namespace: what each node has of it."""
    held: dict[Pair, dict[int, list[tuple[int, set[int]]]]] = {}
    for meta in metas.values():
        for namespace, partition, origin, frontier, beyond, *_ in meta["streams"]:
            held.setdefault((origin, partition), {}).setdefault(namespace, []).append((frontier, set(beyond)))
    return held


def _value(
    pair: Pair, known: bytes | None, held: Mapping[Pair, Mapping[int, list[tuple[int, set[int]]]]], has_covered: bool
) -> bytes:
    """Last and void numbers by what the snapshots hold; `has_covered`: somebody has forgotten it, so that one covers all."""
    agreed: dict[int, list[Any]] = control.unpack(known) if known else {}
    value: dict[int, list[Any]] = {}
    for namespace in sorted(agreed.keys() | held.get(pair, {}).keys()):
        have = held.get(pair, {}).get(namespace, [])
        frontier = max((one for one, _ in have), default=0)
        if has_covered and namespace in agreed:
            frontier = max(frontier, agreed[namespace][0])
        beyond = {number for _, numbers in have for number in numbers if number > frontier}
        last = max(beyond, default=frontier)
        voids = [number for number in range(frontier + 1, last) if number not in beyond]
        covered_voids = [number for number in agreed.get(namespace, [0, []])[1] if number <= frontier]
        value[namespace] = [last, covered_voids + voids]
    return control.pack(value)


def _cover(meta: Meta, pair: Pair, value: bytes) -> None:
    """A node that had forgotten a closing covers all of it: say so by a stream."""
    origin, partition = pair
    for namespace, (last, _) in control.unpack(value).items():
        if last:
            meta["streams"].append([namespace, partition, origin, last, [], {}, {}])


# --- who covers what ------------------------------------------------------------------------------------------------


def _settle_covers(metas: Mapping[str, Meta], places: Places) -> None:
    """No node believes of another, or of a datacenter, more than their snapshots hold."""
    frontiers: dict[str, dict[_StreamKey, int]] = {
        node: {(s[0], s[1], s[2]): s[3] for s in meta["streams"]} for node, meta in metas.items()
    }
    for meta in metas.values():
        for stream in meta["streams"]:
            key: _StreamKey = (stream[0], stream[1], stream[2])
            stream[5] = {
                dc: min(covered, _of_quorum(frontiers, key, places.owners[dc][key[1]]))
                for dc, covered in stream[5].items()
                if dc in places.owners
            }
            stream[6] = {
                peer: min(covered, frontiers[peer].get(key, 0)) for peer, covered in stream[6].items() if peer in frontiers
            }


def _of_quorum(frontiers: Mapping[str, Mapping[_StreamKey, int]], key: _StreamKey, owners: Iterable[str]) -> int:
    have = sorted((frontiers[owner].get(key, 0) for owner in owners), reverse=True)
    return have[len(have) // 2] if have else 0
