"""Administration of a node's storage while it runs: snapshots, and its worker. The verbs are listed in `node.admin`.

Invariants: a pause ends by itself. Nothing here waits: what takes long is answered when it is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from geokv.core.limits import PAUSE_MS_MAX
from geokv.errors import GeokvError, InvalidRequest
from geokv.node.answers import Respond, Verb, number_of, reply_of, text_of
from geokv.protocol.requests import AdminReply, AdminRequest, Outcome
from geokv.storage.snapshot_orders import Snapshot

if TYPE_CHECKING:
    from geokv.node.node import Node

BYTES_PER_S_MIN: Final = 64 * 1024  # slower than that, flushes would never come to their end
BYTES_PER_S_MAX: Final = 1 << 40
_U64_MAX: Final = (1 << 64) - 1


class StorageVerbs:
    """The verbs of one node, by name."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.verbs: dict[str, Verb] = {
            "snapshot_hold": self._hold,
            "snapshot_create": self._create,
            "snapshot_list": self._list,
            "snapshot_show": self._show,
            "snapshot_remove": self._remove,
            "storage_pause": self._pause,
            "storage_resume": self._resume,
            "storage_throttle": self._throttle,
            "storage_flush": self._flush,
            "storage_compact": self._compact,
        }

    # --- snapshots --------------------------------------------------------------------------------------------------

    def _hold(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        self._node.snapshots.hold(text_of(arguments, "name"))
        respond(AdminReply(Outcome.APPLIED, self._place()))

    def _create(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        name = text_of(arguments, "name")
        cut = text_of(arguments, "cut")  # as text: 64 bits are more than a number of JSON surely has
        if not (cut.isascii() and cut.isdecimal() and int(cut) <= _U64_MAX):
            raise InvalidRequest(f"cut = {cut[:40]!r} is no HLC: a decimal number of 64 bits")
        is_held = arguments.get("held", False)
        if not isinstance(is_held, bool):
            raise InvalidRequest("held: true or false")
        self._node.snapshots.take(name, int(cut), is_held, lambda found: respond(self._of_one(found, name)))

    def _show(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        name = text_of(arguments, "name")
        self._node.snapshots.look(lambda found: respond(self._of_one(found, name)))

    def _of_one(self, found: list[Snapshot] | GeokvError, name: str) -> AdminReply:
        if isinstance(found, GeokvError):
            return reply_of(found)
        one = next((snapshot for snapshot in found if snapshot.name == name), None)
        if one is None:
            return reply_of(InvalidRequest(f"there is no snapshot {name!r} on {self._node.config.node}"))
        body = {**self._place(), **one.summary(), "files": [asdict(file) for file in one.files]}
        return AdminReply(Outcome.APPLIED, body)

    def _list(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        self._node.snapshots.look(lambda found: respond(self._of_all(found)))

    def _remove(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        self._node.snapshots.remove(text_of(arguments, "name"), lambda found: respond(self._of_all(found)))

    def _of_all(self, found: list[Snapshot] | GeokvError) -> AdminReply:
        if isinstance(found, GeokvError):
            return reply_of(found)
        return AdminReply(Outcome.APPLIED, {**self._place(), "snapshots": [one.summary() for one in found]})

    def _place(self) -> dict[str, Any]:
        config = self._node.config
        return {"node": config.node, "dc": config.dc, "cluster": config.cluster, "generation": config.generation}

    # --- the worker -------------------------------------------------------------------------------------------------

    def _pause(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        self._node.upkeep.pause(number_of(arguments, "duration_ms", 1, PAUSE_MS_MAX) * 1000)
        respond(self._worker())

    def _resume(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        self._node.upkeep.resume()
        respond(self._worker())

    def _throttle(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        rate = number_of(arguments, "bytes_per_s", 0, BYTES_PER_S_MAX)
        if 0 < rate < BYTES_PER_S_MIN:
            raise InvalidRequest(f"bytes_per_s = {rate}: at least {BYTES_PER_S_MIN}, or 0 for what is configured")
        self._node.upkeep.throttle(rate)
        respond(self._worker())

    def _worker(self) -> AdminReply:
        upkeep = self._node.upkeep
        body = {"paused_ms_left": upkeep.paused_ms_left, "bytes_per_s_max": upkeep.bytes_per_s}
        return AdminReply(Outcome.APPLIED, {"node": self._node.config.node, **body})

    def _flush(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        self._node.upkeep.flush_soon(lambda error: respond(self._done(error)))

    def _compact(self, arguments: Mapping[str, Any], request: AdminRequest, respond: Respond) -> None:
        namespaces = list(self._node.context.tables)
        if arguments.get("namespace") is not None:
            namespaces = [self._node.assembly.demand_table(text_of(arguments, "namespace")).definition.id]
        self._node.upkeep.compact_soon(namespaces, lambda error: respond(self._done(error)))

    def _done(self, error: str) -> AdminReply:
        body = {"node": self._node.config.node, **self._node.admin.storage()}
        return AdminReply(Outcome.UNAVAILABLE, {}, error) if error else AdminReply(Outcome.APPLIED, body)
