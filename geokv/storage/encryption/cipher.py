"""AES-GCM under a key of each file's own, and the stamp in a file's header that says which key that was.

    stamp, 44 bytes
    offset size field
    0      16   id of the key, ASCII, filled up with zeros
    16     8    check value of the key: tells a wrong key from damage
    24     16   salt, drawn anew for every file
    40     4    CRC-32 of bytes 0 to 40

The key of a file comes from the node's key, the salt and a label (what the file is, and its number) by HKDF-SHA-256. So
a nonce need only be unique within one file: whoever encrypts makes it from the place where the bytes stand, and writes
no place of a file twice under the same nonce. What is encrypted is bound to its place by the associated data, too.

`cryptography` is imported when the first key is used: a node without keys pays nothing for it.
Format page: docs/formats/encryption.md.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final, NamedTuple
from zlib import crc32

_STAMP = Struct("<16s8s16s")
STAMP_BYTES: Final = _STAMP.size + 4
SALT_BYTES: Final = 16
TAG_BYTES: Final = 16
CHECK_BYTES: Final = 8
_CHECK_LABEL: Final = b"geokv check"
_FILE_LABEL: Final = b"geokv file "


class Stamp(NamedTuple):
    """What an encrypted file says of its key."""

    key_id: str
    check: bytes
    salt: bytes

    def encode(self) -> bytes:
        raw = _STAMP.pack(self.key_id.encode("ascii"), self.check, self.salt)
        return raw + crc32(raw).to_bytes(4, "little")


def decode_stamp(raw: bytes) -> Stamp:
    """Inverse of `Stamp.encode`. Raises ValueError."""
    if len(raw) != STAMP_BYTES or crc32(raw[: _STAMP.size]) != int.from_bytes(raw[_STAMP.size :], "little"):
        raise ValueError("the checksum of what names its key does not match")
    key_id, check, salt = _STAMP.unpack_from(raw)
    return Stamp(key_id.rstrip(b"\0").decode("ascii"), check, salt)


class FileCipher:
    """Encrypts and decrypts in one file. Safe to use from several threads."""

    __slots__ = ("_aead", "_unauthentic", "stamp")

    def __init__(self, key: bytes, stamp: Stamp, label: bytes) -> None:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self.stamp = stamp
        self._unauthentic = (InvalidTag, ValueError)
        self._aead = AESGCM(_derived(key, stamp.salt, _FILE_LABEL + label, len(key)))

    def encrypt(self, nonce: bytes, raw: bytes, place: bytes) -> bytes:
        """The bytes, and TAG_BYTES behind them. The same nonce must never come again in this file."""
        return self._aead.encrypt(nonce, raw, place)

    def decrypt(self, nonce: bytes, sealed: bytes | memoryview, place: bytes) -> bytes:
        """Raises ValueError for anything but what `encrypt` made with this nonce for this place."""
        try:
            return self._aead.decrypt(nonce, sealed, place)
        except self._unauthentic:
            raise ValueError("it does not decrypt: it was changed, or belongs to another place") from None


def check_of(key: bytes) -> bytes:
    """The check value of a key: says nothing of it but whether two are the same."""
    return _derived(key, b"", _CHECK_LABEL, CHECK_BYTES)


def _derived(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    algorithm: Any = SHA256()
    return HKDF(algorithm, length, salt or None, info).derive(key)
