"""Keys are read with care, told apart from damage, and never told to anybody."""

import errno
import os
import pickle
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from geokv.errors import ConfigurationError, EncryptionKeyError, StorageError
from geokv.storage.encryption.cipher import TAG_BYTES
from geokv.storage.encryption.keys import KeyRing, Keys, key_line, parse_keys
from geokv.storage.encryption.new_key import append_line
from geokv.storage.encryption.source import KeySource
from geokv.storage.lsm.small_file import decode_small_file, encode_small_file

OLD, NEW = bytes(range(32)), bytes(range(16))
RING = KeyRing({"old": OLD, "new": NEW}, "new")
MAGIC = b"geokvtst"


def test_the_last_line_says_what_new_files_are_written_with() -> None:
    """Comments and empty lines are passed over; all keys are for reading, the last one for writing, `plain` for none."""
    text = "# ours\n\n" + key_line("old", OLD) + key_line("new", NEW)
    ring = parse_keys(text, "here")
    assert (ring.ids, ring.active, ring.key("old"), ring.key("new")) == (("old", "new"), "new", OLD, NEW)
    assert parse_keys(text + "plain\n", "here").active == ""
    for one in (ring, parse_keys(text + "plain\n", "here"), KeyRing({"old": OLD, "new": NEW}, "old")):
        again = parse_keys(one.lines(), "here")
        assert (set(again.ids), again.active, again.key("old")) == (set(one.ids), one.active, OLD)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no key; `geokv storage new-key` makes one"),
        ("plain\n", "holds no key"),
        ("plain\n" + key_line("a", OLD), "'plain' must be the last line"),
        ("a\n", "line 1: a line is the id of a key, a blank, and the key"),
        (key_line("a", OLD) + key_line("a", NEW), "line 2: the id 'a' stands there twice"),
        (key_line("a", bytes(24)), "line 1: the key 'a' has 24 bytes; AES-GCM is used with 16 or 32"),
        ("a not*base64\n", "line 1: the key 'a' is not in base64"),
        ("x" * 17 + " AAAA\n", "line 1: it does not begin with the id of a key"),
    ],
)
def test_what_is_no_list_of_keys_is_refused_by_line(text: str, why: str) -> None:
    """The error names the place and what is wrong, and tells nothing of the keys."""
    with pytest.raises(ConfigurationError) as caught:
        parse_keys(text, "/etc/keys")
    assert str(caught.value).startswith("/etc/keys") and why in str(caught.value)
    assert key_line("", OLD).strip() not in str(caught.value)


def test_a_key_that_was_appended_is_durable_by_name_or_the_file_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, then folder: what is encrypted with a key must not outlast its line. What failed leaves nothing in the way."""
    path = tmp_path / "keys"
    append_line(path, key_line("old", OLD))
    synced: list[str] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def busy(old: Path, new: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")  # as of a file that is mounted by itself

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ConfigurationError, match="No space left"):
            append_line(path, key_line("new", NEW))
        assert KeySource(path).read().ids == ("old",)
        patch.setattr(os, "fsync", noted)
        append_line(path, key_line("new", NEW))
    assert synced == ["file", "folder"] and KeySource(path).read().active == "new"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", busy)
        with pytest.raises(ConfigurationError, match="busy"):
            append_line(path, key_line("third", NEW))
    assert not (tmp_path / "keys.new").exists() and KeySource(path).read().active == "new"
    (tmp_path / "keys.new").touch()  # by a process that was killed
    with pytest.raises(ConfigurationError, match=r"keys\.new is there: .* remove it"):
        append_line(path, key_line("third", NEW))


def test_no_key_is_lost_where_several_are_appended_at_once(tmp_path: Path) -> None:
    """Who is not alone is told so, or both keys stand there."""
    path = tmp_path / "keys"

    def append(number: int) -> None:
        for at in range(20):
            with suppress(ConfigurationError):
                append_line(path, key_line(f"k{number}-{at}", bytes([number, at]) * 8))
                appended.append(f"k{number}-{at}")

    appended: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(4)))
    assert len(appended) > 4 and sorted(KeySource(path).read().ids) == sorted(appended)


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """Neither the group nor the world may do anything with it; what is missing or no file is told as such."""
    path = tmp_path / "keys"
    path.write_text(key_line("a", OLD))
    for mode in (0o640, 0o604, 0o620, 0o601):
        path.chmod(mode)
        with pytest.raises(ConfigurationError, match=rf"can be read or written by others \(mode {mode:04o}\): chmod 600"):
            KeySource(path).read()
    for mode in (0o600, 0o400):
        path.chmod(mode)
        assert KeySource(path).read().active == "a"
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        KeySource(tmp_path / "none").read()
    with pytest.raises(ConfigurationError, match="is not a file"):
        KeySource(tmp_path).read()
    with pytest.raises(ConfigurationError, match="both given"):
        KeySource(path, "cat keys")


def test_a_key_command_prints_the_same_and_its_output_is_never_told() -> None:
    """What it prints becomes the keys; where it fails or hangs the error tells neither of its streams."""
    line = key_line("a", OLD).strip()
    python = sys.executable
    assert KeySource(command=f"{python} -c \"print('{line}')\"").read().key("a") == OLD
    for program, why in (
        (f"import sys; print('{line}'); sys.stderr.write('{line}'); sys.exit(3)", "ended with code 3"),
        (f"import time; print('{line}', flush=True); time.sleep(60)", "took more than 2 s"),
        (f"print('{line} {line}')", "line 1"),
        ("print('ä')", "not plain ASCII"),
    ):
        with pytest.raises(ConfigurationError, match=why) as caught:
            KeySource(command=f'{python} -c "{program}"', command_s_max=2.0).read()
        assert line.split()[1] not in str(caught.value) and caught.value.__cause__ is None
    with pytest.raises(ConfigurationError, match="cannot be run: No such file"):
        KeySource(command="/no/such/program").read()


def test_keys_stand_in_no_text_and_no_pickle() -> None:
    """What is logged by mistake shows ids; what would be sent by mistake is refused."""
    assert repr(RING) == "KeyRing(ids=('old', 'new'), active='new')"
    for holder in (RING, Keys(RING)):
        with pytest.raises(TypeError):
            pickle.dumps(holder)


def test_a_small_file_says_its_key_and_never_repeats_itself() -> None:
    """Sealed twice it is other bytes, for the salt is new; each can be read; plain ones are read by anybody."""
    raw = b"the node's state, with a key: user:17" * 9
    keys = Keys(RING)
    first, second = (encode_small_file(raw, MAGIC, 1, 9, keys) for _ in range(2))
    assert first[60:] != second[60:] and b"user:17" not in first
    for file in (first, second, encode_small_file(raw, MAGIC, 1, 9, Keys())):
        assert decode_small_file(file, MAGIC, 1, 9, keys, "lsm/X") == (1, 0, raw)
    assert len(first) == len(encode_small_file(raw, MAGIC, 1, 9, Keys())) + 44 + TAG_BYTES


def test_a_missing_and_a_wrong_key_are_told_apart_from_damage() -> None:
    """No key, another one, another one of the same id: an error that names id and file, and is no StorageError."""
    file = encode_small_file(b"state", MAGIC, 1, 9, Keys(RING))
    for ring, why in (
        (KeyRing(), "lsm/X is encrypted with key 'new', and no key is given"),
        (KeyRing({"old": OLD}, "old"), "and the keys given are old"),
        (KeyRing({"new": OLD}, "new"), "another than the one given under that id"),
    ):
        with pytest.raises(EncryptionKeyError, match=why) as caught:
            decode_small_file(file, MAGIC, 1, 9, Keys(ring), "lsm/X")
        assert (caught.value.key_id, caught.value.path) == ("new", "lsm/X")
        assert not isinstance(caught.value, StorageError)


def test_every_flipped_bit_and_truncation_of_a_sealed_file_is_damage() -> None:
    """In the header, the stamp and the block; and so is a block whose checksum was made to fit, without the key."""
    from zlib import crc32

    file = encode_small_file(b"the state", MAGIC, 1, 9, Keys(RING))
    for bit in range(len(file) * 8):
        wrong = bytearray(file)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StorageError, match=r"lsm/X: damaged at byte \d+"):
            decode_small_file(bytes(wrong), MAGIC, 1, 9, Keys(RING), "lsm/X")
    for length in range(len(file)):
        with pytest.raises(StorageError, match=r"lsm/X: damaged at byte \d+"):
            decode_small_file(file[:length], MAGIC, 1, 9, Keys(RING), "lsm/X")
    forged = bytearray(file)
    forged[-1] ^= 1
    seed = (0).to_bytes(8, "little") + (60).to_bytes(8, "little") + b"\x09"
    forged[60:64] = crc32(bytes(forged[64:]), crc32(seed)).to_bytes(4, "little")
    with pytest.raises(StorageError, match="it does not decrypt: it was changed") as caught:
        decode_small_file(bytes(forged), MAGIC, 1, 9, Keys(RING), "lsm/X")
    assert caught.value.details["offset"] == 60


def test_a_plain_node_does_not_load_the_library() -> None:
    """Neither its storage nor the check of its keys imports it."""
    program = (
        "import sys; from geokv.storage.crash_disk import CrashDisk; from geokv.storage.key_use import demand_keys;"
        "from geokv.storage.lsm.engine import LsmEngine; from geokv.storage.wal import Log;"
        "disk = CrashDisk(); LsmEngine(disk); Log.open(disk).append(b'x'); demand_keys(disk);"
        "print('cryptography' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
