"""Sealing: raw bytes as they stand in a file, compressed where that pays, under a checksum that knows the place.

    offset size field
    0      4    CRC-32 of bytes 4 to the end, seeded with the file's number, the block's offset and its kind
    4      4    length of the raw bytes
    8      1    codec: 0 as they are, 1 a zstd frame that states its size, 2 one made with the table's dictionary
    9      1    cipher: 0 none, 1 AES-GCM under the file's key
    10     2    reserved (0)
    12          the bytes; where they are encrypted, 16 bytes of tag behind them

The seed means that a whole and healthy block of another file, or of another place in this one, is as wrong as a
flipped bit: a disk that answers from the wrong sector is found out. What is encrypted was compressed before. Its nonce
is offset and kind, so a file is written front to back, each place once, under a key of its own (`encryption.cipher`).

Invariants: `unseal` looks at the checksum before it believes anything, and at the stated sizes before it allocates.
Damage is a `Damaged` error that names file and offset.
"""

from __future__ import annotations

import threading
from struct import Struct
from typing import Final
from zlib import crc32

import zstandard

from geokv.errors import Damaged, StorageError
from geokv.storage.advice import WHAT_TO_DO
from geokv.storage.encryption.cipher import FileCipher
from geokv.storage.lsm.dictionary import Dictionary, decompress

SEAL_BYTES: Final = 12
RAW_BYTES_MAX: Final = 64 * 1024 * 1024
AS_IT_IS: Final = 0
ZSTD: Final = 1
ZSTD_DICTIONARY: Final = 2
PLAIN: Final = 0
AES_GCM: Final = 1
# For whoever reads that a table is damaged: its node sees to it by itself.
TABLE_TO_DO: Final = (
    "A node that runs sets the table aside, keeps its file, and answers no more for the partitions that it may have held "
    "keys of; the other replicas do. See geokv status."
)
_BODY = Struct("<IBB2x")
_HEADER = Struct("<IIBB2s")
_SEED = Struct("<QQB")
_NONCE = Struct("<QI")
_RESERVED: Final = bytes(2)
_CODECS: Final = (ZSTD, ZSTD_DICTIONARY)
_own = threading.local()  # a decompressor serves one thread at a time


class Kind:
    """What a block holds; part of the seed, so that none is taken for another."""

    PAIRS: Final = 1
    FILTER: Final = 2
    INDEX: Final = 3
    FACTS: Final = 4
    MANIFEST: Final = 5
    META: Final = 6
    DICTIONARY: Final = 7


def seal(
    raw: bytes,
    number: int,
    offset: int,
    kind: int,
    compressor: zstandard.ZstdCompressor | None,
    cipher: FileCipher | None = None,
    codec: int = ZSTD,
) -> bytes:
    """The block as it stands at `offset` of file `number`; with a cipher, once only for each place of its file.

    `codec`: what the compressor makes.
    """
    if len(raw) > RAW_BYTES_MAX:
        raise StorageError(f"a block of {len(raw)} bytes cannot be written: at most {RAW_BYTES_MAX}")
    packed = raw if compressor is None else compressor.compress(raw)
    if compressor is None or len(packed) >= len(raw) - len(raw) // 16:
        packed, codec = raw, AS_IT_IS
    head = _BODY.pack(len(raw), codec, PLAIN if cipher is None else AES_GCM)
    seed = _SEED.pack(number, offset, kind)
    if cipher is not None:
        packed = cipher.encrypt(_NONCE.pack(offset, kind), packed, seed + head)
    body = head + packed
    return crc32(body, crc32(seed)).to_bytes(4, "little") + body


def unseal(
    block: bytes,
    number: int,
    offset: int,
    kind: int,
    name: str,
    cipher: FileCipher | None = None,
    dictionary: Dictionary | None = None,
) -> bytes:
    """The raw bytes. Raises StorageError for anything but what `seal` made for this very place, with this cipher."""
    if len(block) < SEAL_BYTES:
        raise damaged(name, offset, "it ends inside a block")
    crc, raw_length, codec, cipher_code, reserved = _HEADER.unpack_from(block)
    seed = _SEED.pack(number, offset, kind)
    if crc32(memoryview(block)[4:], crc32(seed)) != crc:
        raise damaged(name, offset, "the block's checksum does not match")
    if cipher_code != (PLAIN if cipher is None else AES_GCM):
        raise damaged(name, offset, f"the block's cipher ({cipher_code}) is not that of the file")
    packed = block[SEAL_BYTES:]
    if cipher is not None:
        try:
            packed = cipher.decrypt(_NONCE.pack(offset, kind), packed, seed + block[4:SEAL_BYTES])
        except ValueError as error:
            raise damaged(name, offset, f"the block cannot be read ({error})") from error
    if codec == AS_IT_IS and raw_length == len(packed) and reserved == _RESERVED:
        return packed
    # The frame states its size, and zstandard allocates that much at once: so it is looked at first.
    try:
        if codec in _CODECS and raw_length <= RAW_BYTES_MAX and zstandard.frame_content_size(packed) == raw_length:
            if codec == ZSTD:
                return _decompressor().decompress(packed)
            if dictionary is not None:
                return decompress(packed, dictionary)
    except zstandard.ZstdError as error:
        raise damaged(name, offset, f"the block cannot be decompressed ({error})") from error
    raise damaged(name, offset, f"the block's size is not what it states ({raw_length}), or too large, or codec {codec}")


def damaged(name: str, offset: int, what: str) -> Damaged:
    """The error for what cannot be right."""
    advice = TABLE_TO_DO if name.endswith(".sst") else WHAT_TO_DO
    return Damaged(f"{name}: damaged at byte {offset}: {what}. {advice}", path=name, offset=offset, what=what)


def _decompressor() -> zstandard.ZstdDecompressor:
    found: zstandard.ZstdDecompressor | None = getattr(_own, "decompressor", None)
    if found is None:
        found = _own.decompressor = zstandard.ZstdDecompressor()
    return found
