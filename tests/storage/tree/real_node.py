"""A node in little on real files: a log, the engine with a namespace in each kind of place, and recovery."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from geokv.core.record import DELTA, NO_OPERATION, encode_record
from geokv.storage.disk import RealDisk
from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.node_engine import NodeEngine
from geokv.storage.position import Position
from geokv.storage.tree.tree import TreeOptions
from tests.storage.lsm.little_node import ORIGIN, SEGMENT_BYTES, SMALL, LittleNode

with_rocksdb = pytest.mark.skipif(
    find_spec("rocksdict") is None, reason="rocksdict is not installed: there is no engine rocksdb"
)
TREES = ("lmdb", pytest.param("rocksdb", marks=with_rocksdb))
DURABLE = ("lsm", *TREES)
KIB = 1024
TINY = TreeOptions(
    cache_bytes=8 * KIB, block_cache_bytes=64 * KIB, write_buffer_bytes=64 * KIB, map_bytes_min=64 * KIB, map_bytes_max=1 << 30
)
DAY_MS = 86_400_000
_copies = count()


class RealNode(LittleNode):
    """`put` returns when the log is synced. Namespaces: id -> (engine, policy)."""

    def __init__(self, root: Path, namespaces: dict[int, tuple[str, str]], trees: TreeOptions = TINY, **engine: Any) -> None:
        self.root = root
        self.namespaces = namespaces
        self._options = trees
        self.disk = RealDisk(root)
        self.engine = NodeEngine(self.disk, SMALL, trees, **engine)
        try:
            self._recover()
        except BaseException:
            self.close()
            raise

    def _recover(self) -> None:
        for namespace, (engine, policy) in self.namespaces.items():
            self.engine.create(namespace, policy, engine)
        if self.engine.meta:
            self.engine.restored()
        self._replay()

    def close(self) -> None:
        """In good order, but for a last flush."""
        self.engine.close()
        self.disk.close()

    def reopened(self) -> RealNode:
        self.close()
        return RealNode(self.root, self.namespaces, self._options)

    def crashed(self) -> RealNode:
        """What another process finds after this one was killed: the files as they are now, whatever is in memory."""
        copy = self.root.with_name(f"crashed-{next(_copies)}")
        for space in self.engine._spaces.values():
            if space.place.engine == "rocksdb" and space.tree is not None:
                space.tree._store.cancel_all_background(True)  # type: ignore[attr-defined]  # its threads would change what is being copied
        shutil.copytree(self.root, copy)
        self.close()
        shutil.rmtree(self.root)
        return RealNode(copy, self.namespaces, self._options)

    # --- what it does -----------------------------------------------------------------------------------------------

    def _logged(self, namespace: int, pairs: dict[bytes, bytes]) -> None:
        frame: list[bytes] = []
        for key, cell in pairs.items():
            record = encode_record(DELTA, 0, namespace, 1, 1, NO_OPERATION, ORIGIN, key, cell)
            if sum(map(len, frame)) + len(record) > SEGMENT_BYTES // 2:
                self._append(b"".join(frame))
                frame = []
            frame.append(record)
        self._append(b"".join(frame))
        self.log.sync()

    def _append(self, raw: bytes) -> None:
        segment, offset = self.log.append(raw)
        self.log.prepare()
        self.end = Position(segment, offset + len(raw))

    def _do(self, job: Any) -> Any:
        return self.engine.do(job)

    def scan(self, namespace: int) -> dict[bytes, bytes]:
        return dict(self.engine.table(namespace).items())

    def read(self, namespace: int, keys: list[bytes]) -> list[bytes | None]:
        """As a call of a client does: what memory has not is loaded first."""
        cells = self.engine.table(namespace)
        found, missing = cells.look(keys)
        if not missing:
            return found
        cells.load(missing)
        return [cells.get(key) for key in keys]


def everything_stable(since: Position, clock_ms: int = 10 * DAY_MS) -> CollectionRule:
    return CollectionRule(4, {(ORIGIN, partition): 1 << 32 for partition in range(4)}, clock_ms, since)


def files_of(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
