"""Verifying trees: every value is read and checked, in a process of its own, and nothing is changed.

LMDB trusts its pages: a damaged one can end the process that reads it, so that must not be the one that tells of it.

What is found: values whose checksum does not match, keys that are out of order or that a look-up does not find, trees that
hold another number of pairs than they say, trees that are older than the tables beside them. RocksDB's blocks have
checksums of their own, and it tells file and offset. What is not: a flipped bit in a page that nobody refers to.

Invariants: one damaged tree does not hide another. Works on a folder whose node is stopped.
"""

from __future__ import annotations

import json
import mmap
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from geokv.errors import StorageError
from geokv.storage.child import command, environment
from geokv.storage.position import Position
from geokv.storage.tree.tree import Tree, TreePlace, open_tree, places
from geokv.storage.tree.values import damaged, is_sound
from geokv.storage.wal_verify import Damage

STEP_PAIRS: Final = 512
DAMAGE_MAX: Final = 100  # of one tree; more are not told
_OF_ROCKSDB: Final = re.compile(r"in \S*?([0-9]+\.sst) offset ([0-9]+)")


def verify(root: Path, since: Position) -> Iterator[Damage]:
    """Every damage that is found, tree by tree. `since`: up to where the tables hold everything."""
    for place in places(root):
        wanted = (str(root), place.engine, str(place.namespace), str(since.segment), str(since.offset))
        done = subprocess.run(
            command("geokv.storage.tree.verify", *wanted), env=environment(), capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            yield from (Damage(*one) for one in json.loads(done.stdout))
        elif done.returncode < 0:
            name = signal.Signals(-done.returncode).name
            yield Damage(place.path, 0, f"its pages are damaged: reading them ended the process by {name}")
        else:
            yield Damage(place.path, 0, f"it cannot be read: {done.stderr.strip()[-500:]}")


def check(root: Path, place: TreePlace, since: Position) -> Iterator[Damage]:
    """The same for one tree, in this process."""
    try:
        with closing(open_tree(root, place, is_read_only=True)) as tree:
            if tree.facts().position < since:
                yield Damage(tree.name, 0, "it is older than the tables beside it: an older copy of it was put there")
            yield from _walk(root, tree)
    except StorageError as error:
        yield _told(error, place)


def _walk(root: Path, tree: Tree) -> Iterator[Damage]:
    pairs = found = 0
    start, last = b"", b""
    while (some := tree.step(start, None, STEP_PAIRS)) and found < DAMAGE_MAX:
        looked_up = tree.get([key for key, _ in some])
        for (key, value), again in zip(some, looked_up, strict=True):
            what = ""
            if pairs and key <= last:
                what = f"key {key[:64]!r} does not stand behind {last[:64]!r}"
            elif not is_sound(value, key, tree.seed):
                what = damaged(tree.name, key).message
            elif again != value:
                what = f"key {key[:64]!r} stands in it and is not found"
            if what:
                found += 1
                yield Damage(tree.name, _offset_of(root / tree.name, key, value), what)
            pairs += 1
            last = key
        if some[-1][0] < start:
            return  # out of order, and told
        start = max(some[-1][0], last) + b"\0"
    stated = tree.stated_pairs()
    if stated is not None and stated != pairs and not found:
        yield Damage(tree.name, 0, f"{pairs} pairs are found in it, and it states {stated}")


def _offset_of(path: Path, key: bytes, value: bytes) -> int:
    """Where a damaged pair stands in a file; 0 where that cannot be told."""
    if not path.is_file():
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        return max(raw.find(key + value), 0) or max(raw.find(value), 0)


def _told(error: StorageError, place: TreePlace) -> Damage:
    where = _OF_ROCKSDB.search(str(error))
    if where is not None:
        return Damage(f"{place.path}/{where[1]}", int(where[2]), str(error))
    return Damage(str(error.details.get("path", place.path)), 0, str(error))


def main() -> None:
    """`python -m geokv.storage.tree.verify ROOT ENGINE NAMESPACE SEGMENT OFFSET`"""
    root, engine, *numbers = sys.argv[1:]
    namespace, segment, offset = map(int, numbers)
    found = [list(one) for one in check(Path(root), TreePlace(engine, namespace), Position(segment, offset))]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
