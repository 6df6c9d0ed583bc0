"""Small files that are written as a whole: a header and one sealed block, encrypted where the disk has a key for that.

    header                                         the same for every such file, but for its magic
    offset size field
    0      8    magic
    8      4    CRC-32 of bytes 12 to 16
    12     2    format of what the block holds
    14     2    flags: 2 encrypted; the others are its owner's
    16     44   where it is encrypted: the stamp (`encryption.cipher`)
    16, 60      one block (`sealing`), up to the end of the file

Each time it is written with a new salt, hence under a new key, so that the nonce of its one block never comes again.

Invariants: bytes that are damaged, or of another kind of file, are a StorageError with file and offset; a key that is
missing or another one is an EncryptionKeyError. `lsm.meta` begins with the same header, and has blocks of its own. Not
here: how the file is put in place (write, sync, rename: its owner).
"""

from __future__ import annotations

from struct import Struct
from typing import Final
from zlib import crc32

import zstandard

from geokv.errors import StorageError
from geokv.storage.encryption.cipher import STAMP_BYTES, FileCipher, Stamp, decode_stamp
from geokv.storage.encryption.keys import Keys
from geokv.storage.lsm.sealing import damaged, seal, unseal

ENCRYPTED: Final = 2
_ALL_FLAGS: Final = (1 << 16) - 1
_HEADER = Struct("<8sIHH")
_BODY = Struct("<HH")
HEADER_BYTES: Final = _HEADER.size
HEADER_BYTES_MAX: Final = HEADER_BYTES + STAMP_BYTES


def encode_small_file(raw: bytes, magic: bytes, form: int, kind: int, keys: Keys, flags: int = 0) -> bytes:
    """The whole file. `magic` has 8 bytes, `kind` is that of its block (`sealing.Kind`); no two kinds share either.

    `flags`: the owner's, any but ENCRYPTED.
    """
    cipher = keys.begin(_label(magic))
    header = encode_header(magic, form, flags, cipher)
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=True)
    return header + seal(raw, 0, len(header), kind, compressor, cipher)


def encode_header(magic: bytes, form: int, flags: int, cipher: FileCipher | None) -> bytes:
    """What such a file begins with; its blocks follow. None: it is plain."""
    is_encrypted, stamp = (0, b"") if cipher is None else (ENCRYPTED, cipher.stamp.encode())
    body = _BODY.pack(form, flags | is_encrypted)
    return magic + crc32(body).to_bytes(4, "little") + body + stamp


def decode_small_file(
    file: bytes, magic: bytes, newest: int, kind: int, keys: Keys, name: str, known_flags: int = 0
) -> tuple[int, int, bytes]:
    """(format, its owner's flags, raw bytes) of a file up to format `newest`. Raises StorageError, EncryptionKeyError."""
    form, flags, stamp = read_header(file, magic, newest, name, known_flags)
    if stamp is None:
        return form, flags, unseal(file[_HEADER.size :], 0, _HEADER.size, kind, name)
    cipher = keys.resume(stamp, _label(magic), name)
    return form, flags, unseal(file[HEADER_BYTES_MAX:], 0, HEADER_BYTES_MAX, kind, name, cipher)


def read_header(
    file: bytes, magic: bytes, newest: int, name: str, known_flags: int = _ALL_FLAGS
) -> tuple[int, int, Stamp | None]:
    """(format, its owner's flags, stamp; None: plain), given its first HEADER_BYTES_MAX bytes at least. Raises StorageError."""
    if len(file) < _HEADER.size:
        raise damaged(name, 0, "it has no whole header")
    found_magic, crc, form, flags = _HEADER.unpack_from(file)
    if found_magic != magic or crc != crc32(file[12 : _HEADER.size]):
        raise damaged(name, 0, "the header's checksum does not match")
    stranger = flags & ~(ENCRYPTED | known_flags)
    if not 1 <= form <= newest or stranger:
        raise StorageError(
            f"{name} was written by a newer version (format {form}, this one reads up to {newest}"
            f"{f'; flags {flags:#x}' if stranger else ''}): start the version that wrote it",
            path=name,
        )
    own_flags = flags & ~ENCRYPTED
    if own_flags == flags:
        return form, own_flags, None
    try:
        return form, own_flags, decode_stamp(file[_HEADER.size : HEADER_BYTES_MAX])
    except ValueError as error:
        raise damaged(name, 0, f"the header cannot be read ({error})") from error


def key_id_of(file: bytes, magic: bytes, newest: int, name: str) -> str:
    """The key that a file which begins so is written with; empty: none, it is plain. Raises StorageError."""
    stamp = read_header(file, magic, newest, name)[2]
    return "" if stamp is None else stamp.key_id


def _label(magic: bytes) -> bytes:
    return b"small file " + magic
