"""Encryption in the log: one call of AES-GCM per frame, and what makes its nonces unique.

    segment     a key of its own, from a salt drawn when its first frame is written
    frame       nonce: 8 bytes drawn for each run that appends to the segment, 4 bytes: where the frame begins

Within a run of the log no place is written twice: after any failure the log must be opened anew. What a torn tail left is
overwritten by the next run, and so is what an old copy of the disk lacks: under the same key, with another nonce, since
the run's 8 bytes stand in each frame. What recovery writes once more are the same bytes.

Invariants: a payload comes out only if it was put in at this very place of this segment, under this header of a frame.
Not here: what a key is (`encryption`), the frame (`wal_format`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from geokv.errors import CorruptLog
from geokv.storage.advice import WHAT_TO_DO
from geokv.storage.encryption.cipher import FileCipher
from geokv.storage.encryption.keys import Keys
from geokv.storage.wal_format import FRAME_HEADER_BYTES, PREFIX, RUN_BYTES, Frame, SegmentHeader, frames_of
from geokv.storage.wal_recovery import segment_name

_PLACE_BYTES: Final = 4
assert RUN_BYTES + _PLACE_BYTES == 12


def segment_label(number: int) -> bytes:
    """What the key of a segment is derived with."""
    return b"segment " + number.to_bytes(8, "little")


def seal_payload(cipher: FileCipher, payload: bytes, run: bytes, start: int, body: bytes) -> bytes:
    """What stands in the frame that begins at `start`, behind its header, which ends with `body`."""
    return run + cipher.encrypt(run + start.to_bytes(_PLACE_BYTES, "little"), payload, body)


def unseal_payload(cipher: FileCipher | None, image: bytes, frame: Frame, base: int, number: int) -> bytes:
    """The payload of a whole frame of `image`, which begins at `base` of segment `number`. Raises CorruptLog."""
    if not frame.is_encrypted and cipher is None:
        return image[frame.offset : frame.stop]
    start = frame.offset - RUN_BYTES * frame.is_encrypted - FRAME_HEADER_BYTES
    try:
        if cipher is None or not frame.is_encrypted:
            raise ValueError("its segment states otherwise whether it is encrypted")
        view = memoryview(image)
        run = image[frame.offset - RUN_BYTES : frame.offset]
        nonce = run + (base + start).to_bytes(_PLACE_BYTES, "little")
        return cipher.decrypt(nonce, view[frame.offset : frame.end], image[start + PREFIX.size : start + FRAME_HEADER_BYTES])
    except ValueError as error:
        name = segment_name(number)
        raise CorruptLog(
            f"{name}: damaged at byte {base + start}: frame {frame.sequence} cannot be read ({error}). {WHAT_TO_DO}",
            path=name,
            offset=base + start,
        ) from error


def cipher_of(header: SegmentHeader, number: int, keys: Keys) -> FileCipher | None:
    """None where the segment is plain. Raises EncryptionKeyError."""
    return None if header.stamp is None else keys.resume(header.stamp, segment_label(number), segment_name(number))


def payloads_of(image: bytes, number: int, header: SegmentHeader, cipher: FileCipher | None) -> Iterator[tuple[int, bytes]]:
    """(where it stands, payload) of each frame of an image that ends with a frame or zeros. Raises StorageError."""
    for frame in frames_of(image, number, header):
        yield frame.offset, unseal_payload(cipher, image, frame, 0, number)
