"""Which engines there are, and which of them a node can keep a namespace in.

    lsm        sorted tables, ours                       always
    lmdb       a B+tree per namespace (`storage.tree`)   where there are real files
    rocksdb    a RocksDB per namespace (`storage.tree`)  where there are real files and rocksdict is installed
    memory     a bounded cache, nothing on the disk      always

Invariants: one place says which engine needs what. Not here: the names that a definition may hold (`core.namespace`).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from geokv.core.namespace import LMDB, LSM, MEMORY, ROCKSDB
from geokv.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class EngineKind:
    """What an engine needs and can. `is_shared`: the worker process may write to it while the node reads."""

    is_tree: bool = False
    supports_encryption: bool = True
    module: str = ""
    install: str = ""
    is_shared: bool = False


KINDS: Final = {
    LSM: EngineKind(),
    MEMORY: EngineKind(),  # nothing of it is at rest
    LMDB: EngineKind(is_tree=True, supports_encryption=False, module="lmdb", install="pip install lmdb", is_shared=True),
    ROCKSDB: EngineKind(is_tree=True, supports_encryption=False, module="rocksdict", install="pip install 'geokv[rocksdb]'"),
}


def check_held(engine: str, has_files: bool, is_encrypted: bool) -> None:
    """Raises InvalidRequest, with what to do, where a node cannot keep a namespace in that engine."""
    kind = KINDS.get(engine)
    if kind is None:
        raise InvalidRequest(f"engine {engine!r} is not known to this version: use a newer geokv, or one of {', '.join(KINDS)}")
    if kind.is_tree and not has_files:
        raise InvalidRequest(f'engine "{engine}" needs real files, and here there are none (a simulated disk): choose "lsm"')
    if is_encrypted and not kind.supports_encryption:
        raise InvalidRequest(
            f'engine "{engine}" cannot encrypt what it keeps, and this node encrypts its disk: choose engine "lsm"'
        )
    if kind.module and find_spec(kind.module) is None:
        raise InvalidRequest(f'engine "{engine}" needs {kind.module}, which is not installed: {kind.install}, on every node')
