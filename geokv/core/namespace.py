"""Namespaces: what one is (a definition), and what all of them are (the catalog), merged from every
datacenter.

Definitions are made in any datacenter, also while it is cut off, and carried to the others. So the catalog is
a join:

    per id     a deletion stands for ever; otherwise the later (altered_hlc, altered_dc) stands
               of its policy the later (policy_hlc, policy_dc), whoever altered anything else; all that it had are remembered
    per name   of the living ids the earliest (created_hlc, created_dc, id) has the name; the others are
               reached as name@created_dc, where that is still ambiguous as name@created_dc#id (16 hex digits)

Invariants:
- The order in which definitions are merged, and how often, makes no difference.
- `decode(encode(definition)) == definition`, also for fields that only a newer version knows: they are kept.
- The namespace `default` (id 1, lww, in all datacenters) is there in every catalog.

Not here: how a datacenter agrees on a definition and carries it (protocol.catalog). NAMESPACES_MAX is checked
where a namespace is created, never where catalogs merge: two datacenters that were cut apart may exceed it
together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any, Final

import msgpack

from geokv.core.conflict import LWW, Policy, check_change, check_durability, check_ttl, policy_after, policy_of
from geokv.core.limits import (
    CACHE_BYTES_DEFAULT,
    CACHE_BYTES_MAX,
    CACHE_BYTES_MIN,
    KEY_BYTES_MAX,
    LMDB_KEY_BYTES_MAX,
    NAMESPACES_MAX,
    VALUE_BYTES_MAX_DEFAULT,
    VALUE_BYTES_MAX_MAX,
)
from geokv.core.quorum import Consistency
from geokv.errors import InvalidRequest, RecordError

DEFAULT_ID: Final = 1
DEFAULT_NAME: Final = "default"
ID_MAX: Final = (1 << 64) - 1
TTL_MS_MAX: Final = 100 * 366 * 86_400_000
INTERVAL_MS_MAX: Final = 60_000
INTERVAL_MS_DEFAULT: Final = 1_000
REPLICAS_MAX: Final = 64
DEFINITION_BYTES_MAX: Final = 64 * 1024

DURABILITIES: Final = ("always", "interval")
LSM: Final = "lsm"
LMDB: Final = "lmdb"
ROCKSDB: Final = "rocksdb"
MEMORY: Final = "memory"
ENGINES: Final = (LSM, LMDB, ROCKSDB, MEMORY)
SETTINGS: Final = (
    "policy",
    "dcs",
    "replicas",
    "write_level",
    "read_level",
    "ttl_ms",
    "value_bytes_max",
    "key_bytes_max",
    "durability",
    "interval_ms",
    "links_off",
    "engine",
    "memory_bytes_max",
    "dictionary",
)
ALTERABLE: Final = (
    "policy",
    "ttl_ms",
    "value_bytes_max",
    "key_bytes_max",
    "write_level",
    "read_level",
    "interval_ms",
    "links_off",
    "memory_bytes_max",
    "dictionary",
)

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True)
class NamespaceDefinition:
    """One namespace, as it was created or last altered.

    `dcs` empty: every datacenter of the topology. `replicas`: (dc, copies) pairs, or None for the topology's.
    `links_off`: (from, to) pairs of datacenters between which it is not shipped for now; the log is kept for later.
    `memory_bytes_max`: on each node, for the engine "memory"; 0 for others.
    `dictionary`: its tables are compressed with a trained dictionary, where that pays; for the engine "lsm".
    `earlier`: the policies that it had before, in alphabetical order; `policy_hlc`, `policy_dc`: when and where it was changed.
    `unknown`: MessagePack of the fields that this version does not know.
    """

    id: int
    name: str
    policy: str = "lww"
    dcs: tuple[str, ...] = ()
    replicas: tuple[tuple[str, int], ...] | None = None
    write_level: Consistency = Consistency.QUORUM
    read_level: Consistency = Consistency.QUORUM
    ttl_ms: int = 0
    value_bytes_max: int = VALUE_BYTES_MAX_DEFAULT
    key_bytes_max: int = KEY_BYTES_MAX
    durability: str = "always"
    interval_ms: int = 0
    links_off: tuple[tuple[str, str], ...] = ()
    engine: str = LSM
    memory_bytes_max: int = 0
    dictionary: bool = False
    created_hlc: int = 0
    created_dc: str = ""
    altered_hlc: int = 0
    altered_dc: str = ""
    version: int = 1
    is_deleted: bool = False
    earlier: tuple[str, ...] = ()
    policy_hlc: int = 0
    policy_dc: str = ""
    unknown: bytes = field(default=b"", repr=False)

    def is_held_by(self, dc: str) -> bool:
        return not self.dcs or dc in self.dcs

    def replicas_in(self, dc: str, otherwise: int) -> int:
        """Copies of each partition in `dc`; `otherwise` is the topology's number."""
        return dict(self.replicas or ()).get(dc, otherwise)

    def settings(self) -> dict[str, object]:
        """What a creator chooses, as a tree of plain values."""
        tree: dict[str, object] = {name: getattr(self, name) for name in SETTINGS}
        tree["dcs"] = list(self.dcs)
        tree["links_off"] = [f"{source}>{target}" for source, target in self.links_off]
        tree["replicas"] = None if self.replicas is None else dict(self.replicas)
        tree["write_level"], tree["read_level"] = self.write_level.name, self.read_level.name
        if self.engine != MEMORY:
            del tree["memory_bytes_max"]
        if self.engine != LSM:
            del tree["dictionary"]
        return tree

    def encode(self) -> bytes:
        tree = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "unknown"}
        tree["write_level"], tree["read_level"] = int(self.write_level), int(self.read_level)
        if self.engine == LSM:  # as version 0.1 encodes it, which knows no other
            del tree["engine"], tree["memory_bytes_max"]
        if not self.dictionary:
            del tree["dictionary"]
        if not self.earlier:
            del tree["earlier"], tree["policy_hlc"], tree["policy_dc"]
        if self.unknown:
            tree |= msgpack.unpackb(self.unknown)
        packed: bytes = msgpack.packb(dict(sorted(tree.items())))
        return packed

    def altered(
        self, changes: Mapping[str, object], hlc: int, dc: str, datacenters: Iterable[str] | None = None
    ) -> NamespaceDefinition:
        """With these settings changed, at `hlc` or just above the last change. Raises InvalidRequest.

        `datacenters`: those that exist, for settings that name some (None: not checked here).
        """
        if not changes:
            raise InvalidRequest(f"nothing to alter: name at least one of {', '.join(ALTERABLE)}")
        for name in changes:
            if name not in ALTERABLE:
                known = f"{name} of a namespace cannot be altered" if name in SETTINGS else f"unknown setting {name!r}"
                raise InvalidRequest(f"{known}; alterable: {', '.join(ALTERABLE)}")
        if self.durability != "interval" and changes.get("interval_ms"):
            raise InvalidRequest(f'interval_ms is only for durability "interval"; {self.name} has "{self.durability}"')
        if self.engine != MEMORY and "memory_bytes_max" in changes:
            raise InvalidRequest(f'memory_bytes_max is only for engine "memory"; {self.name} has "{self.engine}"')
        if self.engine != LSM and "dictionary" in changes:
            raise InvalidRequest(f'dictionary is only for engine "lsm"; {self.name} has "{self.engine}"')
        chosen = _checked(changes)
        _check_keys(self.engine, chosen)
        chosen |= self._changed_policy(chosen, hlc, dc)
        check_ttl(chosen.get("policy", self.policy), chosen.get("ttl_ms", 0))
        if datacenters is not None:
            _check_places(chosen, sorted(datacenters))
        return replace(self, **chosen, **self._next(hlc, dc))

    def _changed_policy(self, chosen: Mapping[str, Any], hlc: int, dc: str) -> dict[str, Any]:
        """What goes with another policy. Raises InvalidRequest for one that is not compatible."""
        policy = chosen.get("policy", self.policy)
        if policy == self.policy:
            return {}
        if self.engine == MEMORY:
            raise InvalidRequest(f'engine "memory" takes policy lww only, not {policy}: it forgets what it merged')
        check_change(self.policy, policy, chosen.get("ttl_ms", self.ttl_ms))
        earlier = tuple(sorted({*self.earlier, self.policy} - {policy}))
        return {"earlier": earlier, "policy_hlc": max(hlc, self.policy_hlc + 1, self.altered_hlc + 1), "policy_dc": dc}

    def policy_now(self) -> Policy:
        """Its policy, with what it was before. Raises InvalidRequest for one that this version does not know."""
        return policy_after(self.policy, self.earlier)

    def joined(self, other: NamespaceDefinition) -> NamespaceDefinition:
        """Of two definitions of one id what stands."""
        later = max(self, other, key=NamespaceDefinition._rank)
        newer = max(self, other, key=lambda one: (one.policy_hlc, one.policy_dc, one.policy))
        earlier = tuple(sorted({*self.earlier, *other.earlier, self.policy, other.policy} - {newer.policy}))
        return replace(later, policy=newer.policy, policy_hlc=newer.policy_hlc, policy_dc=newer.policy_dc, earlier=earlier)

    def deleted(self, hlc: int, dc: str) -> NamespaceDefinition:
        """Its tombstone. Raises InvalidRequest for `default`, with which a cluster is born."""
        if self.id == DEFAULT_ID:
            raise InvalidRequest(f'namespace "{DEFAULT_NAME}" belongs to every cluster and cannot be deleted')
        return replace(self, is_deleted=True, **self._next(hlc, dc))

    def _next(self, hlc: int, dc: str) -> dict[str, Any]:
        return {
            "altered_hlc": max(hlc, self.altered_hlc + 1),
            "altered_dc": dc,
            "version": self.version + 1,
        }

    def _rank(self) -> tuple[bool, int, str, int, bytes]:
        """Of two definitions of one id the one with the higher rank stands, but for the policy."""
        rest = replace(self, policy="", earlier=(), policy_hlc=0, policy_dc="")
        return self.is_deleted, self.altered_hlc, self.altered_dc, self.version, rest.encode()

    def _seniority(self) -> tuple[int, str, int]:
        return self.created_hlc, self.created_dc, self.id


def define(
    namespace_id: int,
    name: str,
    settings: Mapping[str, object],
    datacenters: Iterable[str],
    hlc: int,
    dc: str,
) -> NamespaceDefinition:
    """A new namespace; `settings` holds any of SETTINGS as plain values. Raises InvalidRequest."""
    check_name(name)
    for setting in settings:
        if setting not in SETTINGS:
            raise InvalidRequest(f"unknown setting {setting!r} of a namespace: choose from {', '.join(SETTINGS)}")
    chosen = _checked(settings)
    _check_places(chosen, sorted(datacenters))
    check_ttl(chosen.get("policy", LWW), chosen.get("ttl_ms", 0))
    durability, interval_ms = chosen.get("durability", "always"), chosen.get("interval_ms", 0)
    check_durability(chosen.get("policy", LWW), durability)
    if durability == "interval":
        chosen["interval_ms"] = interval_ms or INTERVAL_MS_DEFAULT
    elif interval_ms:
        raise InvalidRequest('interval_ms is only for durability "interval"; leave it out, or ask for that durability')
    _choose_engine(chosen)
    return NamespaceDefinition(namespace_id, name, **chosen, created_hlc=hlc, created_dc=dc, altered_hlc=hlc, altered_dc=dc)


def _choose_engine(chosen: dict[str, Any]) -> None:
    """Complete the settings of the engine. Raises InvalidRequest where they do not fit together."""
    engine = chosen.get("engine", LSM)
    _check_keys(engine, chosen)
    if engine != LSM and chosen.get("dictionary"):
        raise InvalidRequest('dictionary is only for engine "lsm"; leave it out, or ask for that engine')
    if engine == LMDB:
        chosen.setdefault("key_bytes_max", LMDB_KEY_BYTES_MAX)
    if engine != MEMORY:
        if "memory_bytes_max" in chosen:
            raise InvalidRequest('memory_bytes_max is only for engine "memory"; leave it out, or ask for that engine')
        return
    if chosen.get("policy", "lww") != "lww":
        raise InvalidRequest(f'engine "memory" takes policy lww only, not {chosen["policy"]}: it forgets what it merged')
    chosen.setdefault("memory_bytes_max", CACHE_BYTES_DEFAULT)


def _check_keys(engine: str, chosen: Mapping[str, Any]) -> None:
    if engine == LMDB and chosen.get("key_bytes_max", 0) > LMDB_KEY_BYTES_MAX:
        raise InvalidRequest(
            f'engine "lmdb" takes keys of at most {LMDB_KEY_BYTES_MAX} bytes: give a lower key_bytes_max, or engine "lsm"'
        )


def check_name(name: object) -> None:
    """Raises InvalidRequest for what cannot be a namespace's name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{str(name)[:80]!r} is not a namespace's name: use 1 to 63 of a-z, 0-9, _, . and -, "
            "beginning with a letter or digit"
        )


def decode(packed: bytes) -> NamespaceDefinition:
    """Inverse of `encode`. Raises RecordError for bytes that are no definition."""
    if len(packed) > DEFINITION_BYTES_MAX:
        raise RecordError(f"a definition of {len(packed)} bytes, at most {DEFINITION_BYTES_MAX}")
    try:
        tree = msgpack.unpackb(packed, strict_map_key=True)
        known = {one.name: tree.pop(one.name) for one in fields(NamespaceDefinition) if one.name in tree}
        known["dcs"] = tuple(known["dcs"])
        known["links_off"] = tuple((source, target) for source, target in known.get("links_off", ()))
        if known["replicas"] is not None:
            known["replicas"] = tuple((dc, count) for dc, count in known["replicas"])
        known["earlier"] = tuple(known.get("earlier", ()))
        known["write_level"], known["read_level"] = (
            Consistency(known["write_level"]),
            Consistency(known["read_level"]),
        )
        known["unknown"] = msgpack.packb(tree) if tree else b""
        _check_types(known)
        return NamespaceDefinition(**known)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        msgpack.UnpackException,
    ) as error:
        raise RecordError(f"not a namespace's definition: {type(error).__name__}: {error}") from error


def _check_types(known: Mapping[str, Any]) -> None:
    """The fields that merging and naming rest on."""
    for name in ("id", "created_hlc", "altered_hlc", "version", "policy_hlc"):
        number = known.get(name, 0)
        if not isinstance(number, int) or not 0 <= number <= ID_MAX:
            raise ValueError(f"{name} = {number!r}")
    for name in ("name", "created_dc", "altered_dc", "policy", "policy_dc"):
        if not isinstance(known.get(name, ""), str):
            raise ValueError(f"{name} = {known[name]!r}")
    earlier = known["earlier"]
    if not all(isinstance(one, str) for one in earlier) or list(earlier) != sorted({*earlier} - {known["policy"]}):
        raise ValueError(f"earlier = {earlier!r}")
    if not isinstance(known.get("engine", LSM), str) or not isinstance(known.get("memory_bytes_max", 0), int):
        raise ValueError("engine or memory_bytes_max")
    if not isinstance(known.get("dictionary", False), bool):
        raise ValueError("dictionary")
    if not known["id"] or not isinstance(known["is_deleted"], bool) or not _NAME.fullmatch(known["name"]):
        raise ValueError("id, name or is_deleted")


def _checked(settings: Mapping[str, object]) -> dict[str, Any]:
    return {name: _CHECKS[name](name, value) for name, value in settings.items()}


def _whole(lowest: int, highest: int) -> Any:
    def check(name: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise InvalidRequest(f"{name} = {value!r}: give a whole number from {lowest} to {highest}")
        return value

    return check


def _policy(_: str, value: object) -> str:
    policy_of(str(value))
    return str(value)


def _level(name: str, value: object) -> Consistency:
    if not isinstance(value, str | int):
        raise InvalidRequest(f"{name} = {value!r}: give a level's name")
    level = Consistency.parse(value)
    if level is Consistency.DEFAULT or (name == "read_level" and level is Consistency.EACH_QUORUM):
        raise InvalidRequest(f"{name} cannot be {level.name}: choose ONE, TWO, QUORUM or ALL")
    return level


def _dcs(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(dc, str) for dc in value):
        raise InvalidRequest(f"{name} = {value!r}: give a list of datacenters' names; leave it out for all of them")
    return tuple(sorted(set(value)))


def _replicas(name: str, value: object) -> tuple[tuple[str, int], ...] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} = {value!r}: give the copies per datacenter, like {{'eu-west': 3}}")
    check = _whole(1, REPLICAS_MAX)
    return tuple(sorted((str(dc), check(f"replicas in {dc}", count)) for dc, count in value.items()))


def _links_off(name: str, value: object) -> tuple[tuple[str, str], ...]:
    pairs = [tuple(str(one).split(">")) for one in value] if isinstance(value, list | tuple) else [()]
    if any(len(pair) != 2 or not all(pair) or pair[0] == pair[1] for pair in pairs):
        raise InvalidRequest(f"{name} = {value!r}: give a list of links, like ['eu-west>us-east']; empty: all are on")
    return tuple(sorted({(pair[0], pair[1]) for pair in pairs}))


def _engine(name: str, value: object) -> str:
    if value not in ENGINES:
        raise InvalidRequest(f"unknown {name} {value!r}: choose one of {', '.join(ENGINES)}")
    return str(value)


def _is_on(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} = {value!r}: give true or false")
    return value


def _durability(name: str, value: object) -> str:
    if value not in DURABILITIES:
        raise InvalidRequest(f"unknown {name} {value!r}: choose one of {', '.join(DURABILITIES)}")
    return str(value)


_CHECKS: Final[dict[str, Any]] = {
    "policy": _policy,
    "dcs": _dcs,
    "replicas": _replicas,
    "write_level": _level,
    "read_level": _level,
    "ttl_ms": _whole(0, TTL_MS_MAX),
    "value_bytes_max": _whole(1, VALUE_BYTES_MAX_MAX),
    "key_bytes_max": _whole(1, KEY_BYTES_MAX),
    "durability": _durability,
    "interval_ms": _whole(0, INTERVAL_MS_MAX),
    "links_off": _links_off,
    "engine": _engine,
    "memory_bytes_max": _whole(CACHE_BYTES_MIN, CACHE_BYTES_MAX),
    "dictionary": _is_on,
}
assert set(_CHECKS) == set(SETTINGS) > set(ALTERABLE)


def _check_places(chosen: Mapping[str, Any], datacenters: list[str]) -> None:
    """Datacenters that are named exist, and copies are stated only for those that hold the namespace."""
    held = chosen.get("dcs") or datacenters
    for dc in (*chosen.get("dcs", ()), *chain.from_iterable(chosen.get("links_off", ()))):
        if dc not in datacenters:
            raise InvalidRequest(f"no datacenter {dc!r}: there are {', '.join(datacenters)}")
    for dc, _ in chosen.get("replicas") or ():
        if dc not in held:
            raise InvalidRequest(f"replicas names {dc!r}, which does not hold the namespace: {', '.join(held)} do")


BORN: Final = NamespaceDefinition(DEFAULT_ID, DEFAULT_NAME)
"""The namespace that every cluster is born with."""


class Catalog:
    """All namespaces, a value. `by_id` holds tombstones too, `resolve` finds the living."""

    __slots__ = ("_by_name", "_conflicts", "by_id")

    def __init__(self, definitions: Iterable[NamespaceDefinition] = ()) -> None:
        by_id = {BORN.id: BORN}
        for one in definitions:
            held = by_id.get(one.id)
            by_id[one.id] = one if held is None else held.joined(one)
        self.by_id: Mapping[int, NamespaceDefinition] = by_id
        self._by_name, self._conflicts = _named(one for one in by_id.values() if not one.is_deleted)

    def merged(self, *definitions: NamespaceDefinition) -> Catalog:
        """With these as well; the same object where they change nothing."""
        merged = Catalog([*self.by_id.values(), *definitions])
        return self if merged.by_id == self.by_id else merged

    def resolve(self, name: str) -> NamespaceDefinition | None:
        """The living namespace of that name or alias."""
        return self._by_name.get(name)

    def name_of(self, namespace_id: int) -> str:
        """The name or alias by which `resolve` finds it; the empty string for one that does not live."""
        return next((name for name, one in self._by_name.items() if one.id == namespace_id), "")

    def names(self) -> list[str]:
        return sorted(self._by_name)

    def conflicts(self) -> list[tuple[str, str]]:
        """(name, alias) of each namespace that lost its name to an earlier one."""
        return list(self._conflicts)

    def check_room(self) -> None:
        """Raises InvalidRequest when no further namespace may be created."""
        if len(self._by_name) >= NAMESPACES_MAX:
            raise InvalidRequest(f"there are {len(self._by_name)} namespaces, at most {NAMESPACES_MAX}: delete one first")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Catalog) and self.by_id == other.by_id

    def __hash__(self) -> int:
        return hash(frozenset(self.by_id.values()))


def _named(
    living: Iterable[NamespaceDefinition],
) -> tuple[dict[str, NamespaceDefinition], list[tuple[str, str]]]:
    groups: dict[str, list[NamespaceDefinition]] = {}
    for one in living:
        groups.setdefault(one.name, []).append(one)
    by_name: dict[str, NamespaceDefinition] = {}
    conflicts: list[tuple[str, str]] = []
    for name, group in sorted(groups.items()):
        first, *others = sorted(group, key=NamespaceDefinition._seniority)
        by_name[name] = first
        creators = [one.created_dc for one in others]
        for one in others:
            alias = f"{name}@{one.created_dc}"
            alias += f"#{one.id:016x}" if creators.count(one.created_dc) > 1 else ""
            by_name[alias] = one
            conflicts.append((name, alias))
    return by_name, conflicts
