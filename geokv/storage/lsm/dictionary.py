"""Trained dictionaries: what the cells of a namespace have in common, so that small blocks of them compress well.

A block of 4 KiB holds little to compress it by: every block tells anew what all values begin with. A dictionary of at most
32 KiB, trained from the first cells that a job writes, tells it once per table.

    first cells of a job (some 3 MiB)  -->  samples  -->  dictionary, where it saves a fiftieth  -->  every table of the job

Each table holds its own, as a sealed block, so that it can be copied, moved and verified alone. Where there is too little to
learn from, or it would not pay, tables are written without one; so the setting never harms.

Invariants: memory is bounded by the samples. Equal dictionaries are one in memory, however many tables have them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Final
from weakref import WeakValueDictionary

import zstandard

from geokv.storage.lsm.merging import Stretch

DICTIONARY_BYTES: Final = 32 * 1024
SAMPLES_BYTES: Final = 96 * DICTIONARY_BYTES
SAMPLES_BYTES_MIN: Final = 64 * 1024  # less is not worth the reading of a dictionary
DECOMPRESSORS_MAX: Final = 16  # per thread
_TRIED_BLOCKS: Final = 32
_SAVED_SHARE: Final = 50  # at least a fiftieth


class Dictionary:
    """A dictionary, ready to decompress with."""

    __slots__ = ("__weakref__", "data", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.data = zstandard.ZstdCompressionDict(raw)

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        return zstandard.ZstdCompressor(level=level, dict_data=self.data, write_content_size=True, write_dict_id=False)


_held: WeakValueDictionary[bytes, Dictionary] = WeakValueDictionary()
_holding = threading.Lock()
_own = threading.local()  # a decompressor serves one thread at a time


def dictionary_of(raw: bytes) -> Dictionary:
    """The one of these bytes. Raises zstandard.ZstdError where they are none."""
    with _holding:
        found = _held.get(raw)
        if found is None:
            found = _held[raw] = Dictionary(raw)
        return found


def decompress(packed: bytes, dictionary: Dictionary) -> bytes:
    """Inverse of what its compressor does. Raises zstandard.ZstdError."""
    cached: OrderedDict[int, tuple[Dictionary, zstandard.ZstdDecompressor]] | None
    cached = getattr(_own, "decompressors", None)
    if cached is None:
        cached = _own.decompressors = OrderedDict()
    found = cached.get(id(dictionary))
    if found is None or found[0] is not dictionary:
        found = cached[id(dictionary)] = dictionary, zstandard.ZstdDecompressor(dict_data=dictionary.data)
        if len(cached) > DECOMPRESSORS_MAX:
            cached.popitem(last=False)
    return found[1].decompress(packed)


def trained_on(stretches: Iterable[Stretch], level: int, block_bytes: int) -> tuple[Dictionary | None, Iterator[Stretch]]:
    """(what was learnt from the first pairs, None where it does not pay; all stretches)."""
    rest = iter(stretches)
    first: list[Stretch] = []
    samples: list[bytes] = []
    size = 0
    for stretch in rest:
        first.append(stretch)
        for cell in stretch[1]:
            if size < SAMPLES_BYTES:
                samples.append(cell)
                size += len(cell)
        if size >= SAMPLES_BYTES:
            break
    return _trained(samples, size, level, block_bytes), chain(first, rest)


def _trained(cells: list[bytes], size: int, level: int, block_bytes: int) -> Dictionary | None:
    if size < SAMPLES_BYTES_MIN:
        return None
    try:
        raw = zstandard.train_dictionary(min(DICTIONARY_BYTES, size // 100), [bytes(cell) for cell in cells]).as_bytes()
    except zstandard.ZstdError:
        return None  # too few, or nothing in common
    dictionary = dictionary_of(raw)
    plain, taught = zstandard.ZstdCompressor(level=level), dictionary.compressor(level)
    blocks = list(_blocks(cells, block_bytes))
    tried = blocks[:: max(1, len(blocks) // _TRIED_BLOCKS)]
    before, after = sum(len(plain.compress(block)) for block in tried), sum(len(taught.compress(block)) for block in tried)
    # The dictionary itself stands in the table, too; of a small one it must not take more than it saves.
    saved = (before - after) * len(blocks) // len(tried) - len(raw)
    return dictionary if saved > before * len(blocks) // len(tried) // _SAVED_SHARE else None


def _blocks(cells: list[bytes], block_bytes: int) -> Iterator[bytes]:
    """The cells, as many together as a block has room for."""
    per_block = max(1, block_bytes * len(cells) // max(1, sum(map(len, cells))))
    rest = iter(cells)
    while block := b"".join(islice(rest, per_block)):
        yield block
