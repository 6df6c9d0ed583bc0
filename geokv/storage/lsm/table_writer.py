"""Writing tables: stretches of pairs in key order become one or several files.

    PAIRS blocks | (DICTIONARY block) | FILTER block | INDEX block | FACTS block | footer

A table is cut once its blocks reach `table_bytes`, between two keys. Nothing reads it before the manifest names it,
so it is written under its own name, synced at its end, and its folder synced after the last of them.

Invariants: what `write_tables` returned is durable. After an error none of its files is left, as far as the disk
still removes any; a rest is an orphan, removed when the engine opens next. Memory is bounded by one stretch, one index
and one filter's digests. Not here: how bytes stand in a block (`block`) and under which checksum (`sealing`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import ge
from struct import pack as pack_struct
from typing import Final

import zstandard

from geokv.core.partial import Partial
from geokv.errors import StorageError
from geokv.storage.disk import Disk
from geokv.storage.lsm.block import CELL_BYTES_MAX, KEY_BYTES_MAX, PAIR_BYTES, encode_block
from geokv.storage.lsm.bloom import SEED, build_filter, digest
from geokv.storage.lsm.dictionary import Dictionary, trained_on
from geokv.storage.lsm.facts import FOLDER, JOB_SHIFT, OUTPUTS_MAX, TableFacts, table_name
from geokv.storage.lsm.footer import Footer, Part, encode_footer, table_label
from geokv.storage.lsm.merging import Stretch
from geokv.storage.lsm.sealing import ZSTD, ZSTD_DICTIONARY, Kind, seal
from geokv.storage.lsm.traits import Traits, traits_of

_APPEND_BYTES: Final = 256 * 1024

Pace = Callable[[int], None]
Since = Callable[[bytes], int]
"""Of a key whose cell of dots waits to be collected: an HLC that nothing of it which waits is older than; 0: none is known."""


@dataclass(frozen=True, slots=True)
class TableOptions:
    """How tables are written. Sizes in bytes; `block_bytes` are raw, `table_bytes` as they stand in the file.

    `has_dictionary`: one is trained for them, where it pays.
    """

    block_bytes: int = 4 * 1024
    table_bytes: int = 16 * 1024 * 1024
    bits_per_key: int = 10
    zstd_level: int = 1
    has_dictionary: bool = False


def unpaced(_: int) -> None:
    """As fast as it goes."""


def undated(_: bytes) -> int:
    """Nobody knows the records."""
    return 0


def write_tables(
    disk: Disk,
    job: int,
    namespace: int,
    policy: str,
    stretches: Iterable[Stretch],
    options: TableOptions,
    pace: Pace = unpaced,
    first_output: int = 0,
    since: Since = undated,
) -> list[TableFacts]:
    """Write pairs as tables of job `job`. Raises StorageError, DiskFull.

    `pace` is called with every number of bytes before they are written, and may wait; `since` for each key that waits, once.
    """
    written: list[TableFacts] = []
    rest, dictionary = iter(stretches), None
    number = job << JOB_SHIFT | first_output
    try:
        if options.has_dictionary:
            dictionary, rest = trained_on(rest, options.zstd_level, options.block_bytes)
        blocks = _blocks(rest, options.block_bytes)
        while (first := next(blocks, None)) is not None:
            if number >> JOB_SHIFT != job:
                raise StorageError(f"a job may write {OUTPUTS_MAX} tables, this one needs more: raise table_bytes")
            written.append(_Writer(disk, number, namespace, policy, options, pace, dictionary, since).write(first, blocks))
            number += 1
        if written:
            disk.sync_dir(FOLDER)
    except BaseException:
        for doomed in range(job << JOB_SHIFT | first_output, number + 1):
            with suppress(StorageError):  # the first error is the one to tell
                disk.remove(table_name(doomed))
        raise
    return written


def _blocks(stretches: Iterable[Stretch], block_bytes: int) -> Iterator[Stretch]:
    """Cut so that each fills a block: up to the pair with which it reaches `block_bytes`."""
    keys: list[bytes] = []
    cells: list[bytes] = []
    for more_keys, more_cells in stretches:
        keys, cells = keys + more_keys, cells + more_cells
        ends = list(accumulate([len(key) + len(cell) + PAIR_BYTES for key, cell in zip(keys, cells, strict=True)]))
        begin = filled = 0
        while (last := bisect_left(ends, filled + block_bytes, begin)) < len(keys):
            yield keys[begin : last + 1], cells[begin : last + 1]
            begin, filled = last + 1, ends[last]
        keys, cells = keys[begin:], cells[begin:]
    if keys:
        yield keys, cells


class _Writer:
    """One table on its way to the disk."""

    def __init__(
        self,
        disk: Disk,
        number: int,
        namespace: int,
        policy: str,
        options: TableOptions,
        pace: Pace,
        dictionary: Dictionary | None,
        since: Since,
    ) -> None:
        self._disk = disk
        self._number = number
        self._namespace = namespace
        self._policy = policy
        self._options = options
        self._pace = pace
        self._traits: Traits = traits_of(policy)
        self._since = since
        self._compressor = zstandard.ZstdCompressor(level=options.zstd_level, write_content_size=True)
        self._dictionary = dictionary
        self._pairs_compressor, self._codec = self._compressor, ZSTD
        if dictionary is not None:
            self._pairs_compressor, self._codec = dictionary.compressor(options.zstd_level), ZSTD_DICTIONARY
        self._cipher = disk.keys.begin(table_label(number))
        self._name = table_name(number)
        self._offset = 0
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._digests: list[tuple[int, int]] = []
        self._last_keys: list[bytes] = []
        self._lengths: list[int] = []
        self._partials = self._tombstones = self._deadlines = self._version_max = self._first_deadline_ms = 0
        self._oldest: int | None = None
        self._version_min = (1 << 64) - 1

    def write(self, first: Stretch, rest: Iterator[Stretch]) -> TableFacts:
        """Take the block `first`, and of `rest` as much as fits one table."""
        self._disk.allocate(self._name, 0)
        block: Stretch | None = first
        while block is not None:
            keys, cells = block
            self._check(keys, cells)
            self._measure(keys, cells)
            self._last_keys.append(keys[-1])
            self._lengths.append(self._put(encode_block(keys, cells), Kind.PAIRS, self._pairs_compressor, self._codec))
            block = next(rest, None) if self._offset < self._options.table_bytes else None
        return self._finish(first[0][0])

    def _check(self, keys: list[bytes], cells: list[bytes]) -> None:
        in_order = [*self._last_keys[-1:], *keys]
        if any(map(ge, in_order, in_order[1:])):
            before, key = next((one, other) for one, other in pairwise(in_order) if one >= other)
            raise StorageError(f"{self._name}: key {key[:64]!r} does not stand behind {before[:64]!r}")
        if max(map(len, keys)) > KEY_BYTES_MAX or max(map(len, cells)) > CELL_BYTES_MAX:
            raise StorageError(
                f"{self._name}: a pair near {keys[0][:64]!r} is too large for a table: "
                f"keys have at most {KEY_BYTES_MAX} bytes, cells {CELL_BYTES_MAX}"
            )

    def _measure(self, keys: list[bytes], cells: list[bytes]) -> None:
        self._digests += [digest(key, SEED) for key in keys]
        self._partials += sum([type(cell) is Partial for cell in cells])
        found = self._traits.measure(cells)
        self._version_min = min(self._version_min, found.version_min)
        self._version_max = max(self._version_max, found.version_max)
        if found.tombstones:
            self._tombstones += found.tombstones
            oldest = found.oldest if self._traits.waits is None else self._oldest_of(keys, cells, self._traits.waits)
            self._oldest = oldest if self._oldest is None else min(self._oldest, oldest)
        if found.deadlines:
            self._deadlines += found.deadlines
            self._first_deadline_ms = min(self._first_deadline_ms or found.first_deadline_ms, found.first_deadline_ms)

    def _oldest_of(self, keys: list[bytes], cells: list[bytes], waits: Callable[[bytes], bool]) -> int:
        """Of cells of dots, some of which wait; 0, the least, where it is not known of one."""
        return min([self._since(key) for key, cell in zip(keys, cells, strict=True) if waits(cell)])

    def _put(self, raw: bytes, kind: int, compressor: zstandard.ZstdCompressor | None, codec: int = ZSTD) -> int:
        """Seal and write; the length of what then stands in the file."""
        block = seal(raw, self._number, self._offset, kind, compressor, self._cipher, codec)
        self._append(block)
        return len(block)

    def _append(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._pieces_bytes += len(piece)
        self._offset += len(piece)
        if self._pieces_bytes >= _APPEND_BYTES:
            self._drain()

    def _drain(self) -> None:
        self._pace(self._pieces_bytes)
        self._disk.append(self._name, b"".join(self._pieces))
        self._pieces, self._pieces_bytes = [], 0

    def _finish(self, first_key: bytes) -> TableFacts:
        keys = len(self._digests)
        dictionary_offset = self._offset
        if self._dictionary is not None:
            self._put(self._dictionary.raw, Kind.DICTIONARY, None)
        filter_offset = self._offset
        filter_length = self._put(build_filter(self._digests, keys, self._options.bits_per_key), Kind.FILTER, None)
        index_offset = self._offset
        index_length = self._put(_encode_index(self._last_keys, self._lengths), Kind.INDEX, self._compressor)
        facts_offset = self._offset
        facts = TableFacts(
            self._number,
            self._namespace,
            self._policy,
            facts_offset,
            keys,
            self._partials,
            self._tombstones,
            self._version_min,
            self._version_max,
            first_key,
            self._last_keys[-1],
            deadlines=self._deadlines,
            oldest=self._oldest or 0,
            first_deadline_ms=self._first_deadline_ms,
        )
        facts_length = self._put(facts.encode(), Kind.FACTS, None)
        footer = Footer(
            self._number,
            Part(dictionary_offset, filter_offset - dictionary_offset),
            Part(filter_offset, filter_length),
            Part(index_offset, index_length),
            Part(facts_offset, facts_length),
            None if self._cipher is None else self._cipher.stamp,
        )
        self._append(encode_footer(footer))
        self._drain()
        self._disk.sync(self._name)
        return facts


def _encode_index(last_keys: list[bytes], lengths: list[int]) -> bytes:
    """u32 blocks | lengths u32 each | lengths of the last keys u16 each | the last keys."""
    count = len(lengths)
    return pack_struct(f"<I{count}I{count}H", count, *lengths, *map(len, last_keys)) + b"".join(last_keys)
