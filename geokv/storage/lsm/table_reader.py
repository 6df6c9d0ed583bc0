"""Reading a table: its facts, filter and index stay in memory, blocks come through a cache.

    open    footer, then filter, index and facts with one read
    get     the index names the one block that may hold the key: one read, or none where the cache has it
    stretches   from a key on, in order

A block that is asked for once is searched by its restart points and cached as raw bytes; asked for again it is
decoded into a dictionary. So a cold get decodes little and a hot one is two lookups.

Invariants: nothing is believed before its checksum was looked at; damage of any kind is a StorageError that names
file and offset. A reader never changes, so any thread may use it. Not here: which tables are live (`engine`).
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate, pairwise
from struct import unpack_from
from typing import Final

import zstandard

from geokv.errors import StorageError
from geokv.storage.disk import Disk
from geokv.storage.encryption.cipher import FileCipher
from geokv.storage.lsm.block import decode_block, find
from geokv.storage.lsm.bloom import load_filter, may_contain
from geokv.storage.lsm.cache import BlockCache
from geokv.storage.lsm.dictionary import Dictionary, dictionary_of
from geokv.storage.lsm.facts import TableFacts, decode_facts, table_name
from geokv.storage.lsm.footer import Part, read_footer, table_label
from geokv.storage.lsm.merging import STRETCH_BYTES, Stretch, pairs_of
from geokv.storage.lsm.sealing import Kind, damaged, unseal

_READ_AHEAD_BYTES: Final = 512 * 1024
_BLOCK_BITS: Final = 32  # a block's name in the cache: the table's number, then which of its blocks


class TableReader:
    """See the module. Opened by number; raises StorageError where the file is damaged, cut, or of a newer format.

    EncryptionKeyError where the disk has not the key that it was written with.
    """

    __slots__ = (
        "_cache",
        "_cipher",
        "_dictionary",
        "_disk",
        "_ends",
        "_first_id",
        "_last_keys",
        "facts",
        "key_id",
        "name",
        "number",
        "words",
    )

    def __init__(self, disk: Disk, number: int, cache: BlockCache) -> None:
        self._disk = disk
        self._cache = cache
        self.number = number
        self.name = table_name(number)
        self._first_id = number << _BLOCK_BITS
        self.key_id: str  # empty: it is plain
        self._cipher: FileCipher | None
        self._dictionary: Dictionary | None
        self.facts: TableFacts
        self.words: array[int]
        self._open()

    # --- opening ----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        footer = read_footer(self._disk, self.number)
        self.key_id = "" if footer.stamp is None else footer.stamp.key_id
        self._cipher = self._dictionary = None
        if footer.stamp is not None:
            self._cipher = self._disk.keys.resume(footer.stamp, table_label(self.number), self.name)
        begin = footer.dictionary.offset
        tail = self._disk.read_at(self.name, begin, footer.facts.end - begin)

        def part(place: Part, kind: int) -> bytes:
            return self._unseal(tail[place.offset - begin : place.end - begin], place.offset, kind)

        if footer.dictionary.length:
            try:
                self._dictionary = dictionary_of(part(footer.dictionary, Kind.DICTIONARY))
            except zstandard.ZstdError as error:
                raise damaged(self.name, begin, f"the dictionary cannot be read ({error})") from error
        raw_filter, raw_index = part(footer.filter, Kind.FILTER), part(footer.index, Kind.INDEX)
        raw_facts = part(footer.facts, Kind.FACTS)
        try:
            self.words = load_filter(raw_filter)
        except ValueError as error:
            raise damaged(self.name, footer.filter.offset, f"the filter cannot be read ({error})") from error
        try:
            self._last_keys, self._ends = _decode_index(raw_index)
        except (ValueError, struct.error) as error:
            raise damaged(self.name, footer.index.offset, f"the index cannot be read ({error})") from error
        try:
            self.facts, _ = decode_facts(raw_facts, form=footer.form)
        except ValueError as error:
            raise damaged(self.name, footer.facts.offset, str(error)) from error
        if self._ends[-1] != begin or self.facts.number != self.number or self.facts.nbytes != footer.facts.offset:
            raise damaged(self.name, footer.facts.offset, "its facts do not fit its blocks")

    def _unseal(self, block: bytes, offset: int, kind: int) -> bytes:
        return unseal(block, self.number, offset, kind, self.name, self._cipher, self._dictionary)

    @property
    def has_dictionary(self) -> bool:
        return self._dictionary is not None

    # --- one key ----------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The cell (Partial where it is one), None where the table has none. At most one block is read."""
        index = bisect_left(self._last_keys, key)
        if index == len(self._last_keys):
            return None
        block_id = self._first_id | index
        held = self._cache.get(block_id)
        if isinstance(held, dict):
            return held.get(key)
        try:
            if held is None:
                raw = self._read_block(index)
                self._cache.put(block_id, raw)
                return find(raw, key)
            block = decode_block(held)
        except ValueError as error:
            raise self._unreadable(index, error) from error
        self._cache.put(block_id, block)
        return block.get(key)

    def is_cached(self, key: bytes) -> bool:
        """Whether `get` would answer without the disk."""
        index = bisect_left(self._last_keys, key)
        return index == len(self._last_keys) or (self._first_id | index) in self._cache

    def may_contain(self, key: bytes) -> bool:
        """False where the table surely lacks the key."""
        return self.facts.first_key <= key <= self.facts.last_key and may_contain(self.words, key)

    def _read_block(self, index: int) -> bytes:
        start = self._start(index)
        block = self._disk.read_at(self.name, start, self._ends[index] - start)
        return self._unseal(block, start, Kind.PAIRS)

    # --- many keys --------------------------------------------------------------------------------------------------

    def stretches(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[Stretch]:
        """The pairs with start <= key < stop, in order, through the cache; cells are Partial where they are."""
        for index in range(bisect_left(self._last_keys, start), len(self._last_keys)):
            block = self._block(index)
            keys, cells = list(block), list(block.values())
            begin = bisect_left(keys, start)
            end = len(keys) if stop is None else bisect_left(keys, stop)
            if begin < end:
                yield keys[begin:end], cells[begin:end]
            if end < len(keys):
                return

    def _block(self, index: int) -> dict[bytes, bytes]:
        block_id = self._first_id | index
        held = self._cache.get(block_id)
        if isinstance(held, dict):
            return held
        try:
            block = decode_block(self._read_block(index) if held is None else held)
        except ValueError as error:
            raise self._unreadable(index, error) from error
        self._cache.put(block_id, block)
        return block

    def all_pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Every pair, in order, as `all_stretches`."""
        return pairs_of(self.all_stretches())

    def all_stretches(self) -> Iterator[Stretch]:
        """All of it, in order, in large reads and past the cache: for compaction and for verifying.

        Of a damaged table what stands before the damage comes first.
        """
        index, blocks = 0, len(self._ends)
        while index < blocks:
            begin = self._start(index)
            stop = index + 1
            while stop < blocks and self._ends[stop] - begin <= _READ_AHEAD_BYTES:
                stop += 1
            piece = self._disk.read_at(self.name, begin, self._ends[stop - 1] - begin)
            keys, cells, size = list[bytes](), list[bytes](), 0
            failure: StorageError | None = None
            while index < stop and failure is None:
                start = self._start(index)
                try:
                    raw = self._unseal(piece[start - begin : self._ends[index] - begin], start, Kind.PAIRS)
                    block = decode_block(raw)
                except ValueError as error:
                    failure = self._unreadable(index, error)
                except StorageError as error:
                    failure = error
                else:
                    keys += block
                    cells += block.values()
                    size += len(raw)
                    index += 1
                if keys and (size >= STRETCH_BYTES or index == stop or failure is not None):
                    yield keys, cells
                    keys, cells, size = [], [], 0
            if failure is not None:
                raise failure

    def _start(self, index: int) -> int:
        return self._ends[index - 1] if index else 0

    def check(self, offset: int) -> None:
        """Read the block that begins at that byte once more, past the cache. Raises Damaged, or StorageError."""
        for index in range(len(self._ends)):
            if self._start(index) == offset:
                try:
                    decode_block(self._read_block(index))
                except ValueError as error:
                    raise self._unreadable(index, error) from error

    def _unreadable(self, index: int, error: ValueError) -> StorageError:
        return damaged(self.name, self._start(index), f"the block cannot be read ({error})")


def _decode_index(raw: bytes) -> tuple[list[bytes], list[int]]:
    """(the last key of each block, where each block ends). Raises ValueError, struct.error."""
    (count,) = unpack_from("<I", raw)
    if not count or 4 + count * 6 > len(raw):
        raise ValueError(f"{count} blocks in {len(raw)} bytes")
    lengths = unpack_from(f"<{count}I", raw, 4)
    key_ends = list(accumulate(unpack_from(f"<{count}H", raw, 4 + 4 * count), initial=4 + 6 * count))
    if key_ends[-1] != len(raw):
        raise ValueError("its keys do not fit")
    keys = [raw[begin:end] for begin, end in pairwise(key_ends)]
    return keys, list(accumulate(lengths))
