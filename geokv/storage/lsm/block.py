"""The block: some forty pairs in key order, with prefix-compressed keys, as the raw bytes that get sealed.

    u32 pairs | u32 partial pairs | shared lengths u16 each | suffix lengths u16 each | cell lengths u32 each |
    indexes of the partial pairs, u32 each | suffixes | cells

Lengths stand in columns, so Python reads all of them with one call. A key is the first `shared` bytes of the key
before it and its suffix; every RESTART pairs a key stands whole (a restart point), so that a search decodes no more
than RESTART keys.

Invariants: keys strictly rise. `decode_block` and `find` take bytes whose checksum was looked at; what does not fit
together all the same raises ValueError. Not here: checksum and compression (`sealing`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, pairwise
from struct import Struct, unpack_from
from struct import pack as pack_struct
from typing import Final

from geokv.core.partial import Partial

RESTART: Final = 16
KEY_BYTES_MAX: Final = (1 << 16) - 1
CELL_BYTES_MAX: Final = (1 << 26) - (1 << 17)
PAIR_BYTES: Final = 8  # what a pair takes besides its suffix and cell
_HEAD = Struct("<II")


def shared_length(before: bytes, key: bytes) -> int:
    """How many bytes the two begin with in common."""
    shorter = min(len(before), len(key))
    differing = int.from_bytes(before[:shorter], "big") ^ int.from_bytes(key[:shorter], "big")
    return shorter - (differing.bit_length() + 7 >> 3)


def encode_block(keys: Sequence[bytes], cells: Sequence[bytes]) -> bytes:
    """The raw bytes of the pairs; keys strictly rise."""
    count = len(keys)
    # What the first and the last begin with in common all between them do. One length per block instead of one per key
    # leaves the rest to zstd, and costs a tenth.
    common = shared_length(keys[0], keys[-1])
    shared = _shared_lengths(count, common)
    suffixes = [key[common:] for key in keys]
    suffixes[::RESTART] = keys[::RESTART]
    partials = [index for index, cell in enumerate(cells) if type(cell) is Partial]
    columns = pack_struct(
        f"<II{count}H{count}H{count}I{len(partials)}I",
        count,
        len(partials),
        *shared,
        *map(len, suffixes),
        *map(len, cells),
        *partials,
    )
    return b"".join([columns, *suffixes, *cells])


def _shared_lengths(count: int, common: int) -> list[int]:
    """Where all keys have so much in common, and restart points stand whole."""
    shared = [common] * count
    shared[::RESTART] = [0] * len(shared[::RESTART])
    return shared


def decode_block(raw: bytes) -> dict[bytes, bytes]:
    """All pairs, in order. Raises ValueError."""
    shared, suffixes, lengths, partials, start = _columns(raw)
    keys = [raw[begin:end] for begin, end in pairwise(accumulate(suffixes, initial=start))]
    restarts, common = keys[::RESTART], max(shared)
    prefix = restarts[0][:common]
    is_even = len(prefix) == common and list(shared) == _shared_lengths(len(keys), common)
    if is_even and all(key.startswith(prefix) for key in restarts):
        keys = [prefix + key for key in keys]  # all have this in common
        keys[::RESTART] = restarts
    else:
        key = b""
        for index, skip in enumerate(shared):
            keys[index] = key = key[:skip] + keys[index]
    cells = [raw[begin:end] for begin, end in pairwise(accumulate(lengths, initial=start + sum(suffixes)))]
    for index in partials:
        cells[index] = Partial(cells[index])
    pairs = dict(zip(keys, cells, strict=True))
    if len(pairs) != len(keys):
        raise ValueError("a key stands in it twice")
    return pairs


def find(raw: bytes, key: bytes) -> bytes | None:
    """The cell of one key, without decoding the others; None where it is not in the block. Raises ValueError."""
    shared, suffixes, lengths, partials, start = _columns(raw)
    low, high = 0, (len(shared) - 1) // RESTART
    while low < high:
        middle = (low + high + 1) // 2
        begin = start + sum(suffixes[: middle * RESTART])
        if raw[begin : begin + suffixes[middle * RESTART]] <= key:
            low = middle
        else:
            high = middle - 1
    index = low * RESTART
    begin = start + sum(suffixes[:index])
    found = b""
    for skip, length in zip(shared[index : index + RESTART], suffixes[index : index + RESTART], strict=True):
        found = found[:skip] + raw[begin : begin + length]
        begin += length
        if found == key:
            begin = start + sum(suffixes) + sum(lengths[:index])
            cell = raw[begin : begin + lengths[index]]
            return Partial(cell) if index in partials else cell
        index += 1
    return None


def _columns(raw: bytes) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """Shared, suffix and cell lengths, the partial indexes, and where the suffixes begin."""
    try:
        count, partial_count = _HEAD.unpack_from(raw)
        start = _HEAD.size + count * PAIR_BYTES + partial_count * 4
        if not count or partial_count > count or start > len(raw):
            raise ValueError(f"{count} pairs, {partial_count} of them partial, in {len(raw)} bytes")
        columns = unpack_from(f"<{2 * count}H{count + partial_count}I", raw, _HEAD.size)
    except struct.error as error:
        raise ValueError(str(error)) from error
    suffixes, lengths = columns[count : 2 * count], columns[2 * count : 3 * count]
    partials = columns[3 * count :]
    if start + sum(suffixes) + sum(lengths) != len(raw) or (partials and max(partials) >= count):
        raise ValueError("its lengths do not fit together")
    return columns[:count], suffixes, lengths, partials, start
