"""The bloom filter of a table: two probes into 64-bit words, three bits each.

    digest of the key (128 bits, mmh3)  ->  (a, b)
    word  a mod n             needs the three bits of b[0:18]
    word  b[32:64] mod n      needs the three bits of a[46:64]

The digest and the first three bits are worked out once per key, whatever the number of tables; then most tables
that lack the key say so with one look at one word. With 10 bits per key about 1.3 % of absent keys pass.

Invariants: a key that was added always passes. The seed differs from the ring's, so that the keys of few partitions
spread as evenly as any others. Not here: the look itself, which `cells` does in place.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import Final

import mmh3

SEED: Final = 0x6765_6F6B
_TWO_BITS: Final = [1 << (both & 63) | 1 << (both >> 6) for both in range(1 << 12)]  # a filter is built in half the time
digest = mmh3.mmh3_x64_128_utupledigest


def first_bits(b: int) -> int:
    """What the first word must hold."""
    return 1 << (b & 63) | 1 << (b >> 6 & 63) | 1 << (b >> 12 & 63)


def second_bits(a: int) -> int:
    """What the second word must hold."""
    return 1 << (a >> 46 & 63) | 1 << (a >> 52 & 63) | 1 << (a >> 58)


def build_filter(digests: Iterable[tuple[int, int]], keys: int, bits_per_key: int) -> bytes:
    """The filter of `keys` keys with these digests, as little-endian words."""
    count = max(1, -(-keys * bits_per_key // 64))
    words, two = [0] * count, _TWO_BITS
    for a, b in digests:  # as `first_bits` and `second_bits`
        words[a % count] |= two[b & 4095] | two[b >> 6 & 4095]
        words[(b >> 32) % count] |= two[a >> 46 & 4095] | two[a >> 52]
    return _swapped(array("Q", words)).tobytes()


def load_filter(raw: bytes) -> array[int]:
    """The words of a filter. ValueError for a length that is none."""
    words = array("Q")
    words.frombytes(raw)
    if not words:
        raise ValueError("an empty filter")
    return _swapped(words)


def may_contain(words: array[int], key: bytes) -> bool:
    """Whether the key may be among those that were added."""
    a, b = digest(key, SEED)
    first, second = first_bits(b), second_bits(a)
    count = len(words)
    return words[a % count] & first == first and words[(b >> 32) % count] & second == second


def _swapped(words: array[int]) -> array[int]:
    """Little-endian on disk, native in memory."""
    if sys.byteorder == "big":
        words.byteswap()
    return words
