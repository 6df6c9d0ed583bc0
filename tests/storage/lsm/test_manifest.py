"""The manifest is the old one or the new one, and says which files count."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.errors import EncryptionKeyError, StorageError
from geokv.storage.crash_disk import CrashDisk
from geokv.storage.encryption.keys import Keys
from geokv.storage.lsm.facts import TableFacts, table_name
from geokv.storage.lsm.manifest import (
    NAME,
    TEMPORARY,
    Position,
    State,
    decode_manifest,
    encode_manifest,
    open_manifest,
    read_manifest,
    write_manifest,
)
from geokv.storage.lsm.meta import MetaFile, decode_meta, encode_meta, meta_name, read_meta, write_meta
from geokv.storage.lsm.small_file import HEADER_BYTES_MAX
from tests.storage.lsm.little_node import FailingDisk, PowerCut, refused
from tests.storage.modes import MODES, RING

GOLDEN = Path(__file__).parent / "golden"
_U64 = st.integers(0, 2**64 - 1)
_FACTS = st.builds(
    TableFacts,
    *[_U64, _U64, st.sampled_from(["lww", "siblings"]), *[_U64] * 6, st.binary(max_size=9), st.binary(max_size=9)],
    level=st.integers(0, 9),
    run=_U64,
    deadlines=_U64,
    oldest=_U64,
    first_deadline_ms=_U64,
)
_STATES = st.builds(
    State,
    _U64,
    st.builds(Position, _U64, _U64),
    st.just(b""),
    st.builds(MetaFile, _U64, st.just(0), st.integers(0, 2**32 - 1)),
    st.dictionaries(_U64, st.lists(_FACTS, max_size=3).map(tuple), max_size=3),
)


def _facts(number: int) -> TableFacts:
    return TableFacts(number, 7, "lww", 100, 3, 0, 0, 1, 3, b"a", b"z")


def _disk(*numbers: int) -> CrashDisk:
    """A disk with a manifest and these files beside it, all durable."""
    disk = CrashDisk()
    disk.make_folder("lsm")
    for number in numbers:
        disk.append(table_name(number), b"a table")
        disk.sync(table_name(number))
    disk.sync_dir("lsm")
    return disk


@given(_STATES)
def test_what_is_written_is_read(state: State) -> None:
    """Any state comes back as it was, encrypted or not."""
    assert decode_manifest(encode_manifest(state)) == state
    assert decode_manifest(encode_manifest(state, Keys(RING)), Keys(RING)) == state


def test_a_new_folder_gets_a_manifest_before_any_table() -> None:
    """The first opening writes one, durably, so that a missing one is never an ordinary thing later."""
    disk = CrashDisk()
    assert open_manifest(disk) == State()
    for seed in range(20):
        assert read_manifest(disk.crash_clone(random.Random(seed))) == State()


def test_tables_without_a_manifest_are_refused_and_kept() -> None:
    """Nobody removes what a lost manifest may have named."""
    disk = _disk(5, 6)
    with pytest.raises(StorageError, match=r"lsm/MANIFEST is missing though 2 tables are there: put it back"):
        open_manifest(disk)
    assert len(disk.list("lsm")) == 2


def test_a_missing_table_is_told_by_name() -> None:
    """A manifest that names a file that is gone does not open."""
    disk = _disk(5)
    write_manifest(disk, State(9, tables={7: (_facts(5), _facts(6))}))
    with pytest.raises(StorageError, match="names table 0000000000000006, which is not there"):
        open_manifest(disk)


def test_orphans_go_on_opening_and_strangers_stay() -> None:
    """What no manifest names is removed, only what has a table's name; job numbers go on above all that were seen."""
    disk = _disk(5 << 16, 6 << 16 | 3)
    write_manifest(disk, State(6, Position(3, 99), b"m", write_meta(disk, 5, b"m"), {7: (_facts(5 << 16),)}))
    disk.append(TEMPORARY, b"half a manif")
    disk.append(meta_name(4), b"an older state")
    disk.append(meta_name(6), b"half a newer sta")
    disk.append("lsm/notes.txt", b"an operator's")
    state = open_manifest(disk)
    assert disk.list("lsm") == [f"{5 << 16:016x}.sst", "MANIFEST", "META-0000000000000005", "notes.txt"]
    assert (state.next_job, state.position, state.meta) == (7, (3, 99), b"m")


def test_a_crash_at_any_moment_leaves_the_old_or_the_new_one(samples) -> None:
    """Power cut or error at each disk call of a switch: what opens then is one of the two, and all its tables stand."""
    old, new = State(6, Position(1, 1), tables={7: (_facts(5),)}), State(7, Position(2, 2), tables={7: (_facts(6),)})
    for fail in (PowerCut, refused):
        for at in range(1, 7):
            disk = _disk(5, 6)
            write_manifest(disk, old)
            failing = FailingDisk(disk, at, fail)
            is_written = True
            try:
                write_manifest(failing, new)  # type: ignore[arg-type]
            except (PowerCut, StorageError):
                is_written = False
            assert is_written == (failing.count < at)
            for seed in range(samples.of(test=5, check=20, soak=500)):
                found = open_manifest(disk.crash_clone(random.Random(seed)))
                assert found in ((new,) if is_written else (old, new))


def test_nothing_is_written_upon_what_a_failed_write_left() -> None:
    """A manifest that was not synced, and cannot be removed before the next: that one fails too, and the old one stands."""
    disk = _disk(5)
    write_manifest(disk, old := State(6, Position(1, 1), tables={7: (_facts(5),)}))
    disk.fail("sync", name=TEMPORARY)
    disk.fail("remove", name=TEMPORARY)
    for _ in range(2):
        with pytest.raises(StorageError):
            write_manifest(disk, State(7, Position(2, 2), tables={7: (_facts(5),)}))
        assert read_manifest(disk) == old
    assert open_manifest(disk.crash_clone(random.Random(1))) == old
    write_manifest(disk, new := State(8, Position(3, 3), tables={7: (_facts(5),)}))
    assert open_manifest(disk) == new


def test_every_flipped_bit_and_truncation_is_refused() -> None:
    """All of them: a StorageError that names the file, never another state."""
    raw = encode_manifest(State(6, Position(1, 1), b"state", MetaFile(5, 5, 77), {7: (_facts(5),)}))
    for bit in range(len(raw) * 8):
        wrong = bytearray(raw)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StorageError, match=rf"{NAME}: damaged at byte \d+"):
            decode_manifest(bytes(wrong))
    for length in range(len(raw)):
        with pytest.raises(StorageError, match=rf"{NAME}: damaged at byte \d+"):
            decode_manifest(raw[:length])
    with pytest.raises(StorageError, match="damaged"):
        decode_manifest(raw + b"\0")


def test_a_newer_format_is_refused_by_name() -> None:
    """A manifest of format 4 asks for the newer version, and nothing is removed."""
    from zlib import crc32

    disk = _disk(5)
    body = b"\4\0\0\0"
    disk.append(NAME, b"geokvman" + crc32(body).to_bytes(4, "little") + body + b"whatever is in it")
    with pytest.raises(StorageError, match=r"newer version \(format 4, this one reads up to 3\)"):
        open_manifest(disk)
    assert len(disk.list("lsm")) == 2


def _is_golden(state: State) -> bool:
    (facts,) = state.tables[7]
    return (
        (state.next_job, state.position) == (4, (2, 4096))
        and (facts.number, facts.level, facts.run, facts.pairs, facts.partials) == (3 << 16, 1, 0, 3, 1)
        and (facts.first_key, facts.last_key) == (b"apple", b"plum")
    )


@pytest.mark.parametrize("form", [1, 2])
def test_the_bytes_of_earlier_formats_still_open(form: int) -> None:
    """A manifest with the state inside is read for ever."""
    state = decode_manifest((GOLDEN / f"format-{form}.manifest").read_bytes())
    assert _is_golden(state) and (state.meta, state.meta_file) == (b"the node's state", MetaFile())


@pytest.mark.parametrize("suffix", ["", "-encrypted"])
def test_the_bytes_of_format_3_still_open(suffix: str) -> None:
    """Manifest and state fit each other, plain and encrypted."""
    state = decode_manifest((GOLDEN / f"format-3{suffix}.manifest").read_bytes(), Keys(RING))
    assert _is_golden(state) and state.meta_file.job == 3
    disk = _disk()
    disk.keys = Keys(RING)
    disk.append(state.meta_file.name, (GOLDEN / f"format-1{suffix}.meta").read_bytes())
    assert read_meta(disk, state.meta_file) == b"the node's state"


@given(st.integers(0, 2**64 - 1), st.binary(max_size=300))
def test_a_state_comes_back(job: int, meta: bytes) -> None:
    """Any bytes, encrypted or not."""
    assert decode_meta(encode_meta(job, meta), job) == meta
    assert decode_meta(encode_meta(job, meta, Keys(RING)), job, Keys(RING)) == meta


@pytest.mark.parametrize("keys", [Keys(), Keys(RING)], ids=MODES)
def test_a_state_of_many_pieces_comes_back(keys: Keys) -> None:
    """More than one block holds; another job's file is not taken for this one's."""
    meta = random.Random(1).randbytes(3 * 1024 * 1024 + 5)
    raw = encode_meta(9, meta, keys)
    assert decode_meta(raw, 9, keys) == meta
    with pytest.raises(StorageError, match="checksum"):
        decode_meta(raw, 8, keys)


def test_an_encrypted_state_shows_nothing_and_needs_its_key() -> None:
    """Each time it is written it is another file, under another salt; a missing key is told by its id, and is no damage."""
    meta = b"the node's state " * 100
    files = [encode_meta(9, meta, Keys(RING)) for _ in range(2)]
    assert files[0][HEADER_BYTES_MAX:] != files[1][HEADER_BYTES_MAX:]
    assert not any(b"state" in raw for raw in files)
    with pytest.raises(EncryptionKeyError, match=r"META-0000000000000009 is encrypted with key 'new', and no key is given"):
        decode_meta(files[0], 9)


@pytest.mark.parametrize("keys", [Keys(), Keys(RING)], ids=MODES)
def test_every_flipped_bit_and_truncation_of_a_state_is_refused(keys: Keys) -> None:
    """All of them: a StorageError that names the file. A whole block cut off shows in the length that the manifest states."""
    disk = _disk()
    disk.keys = keys
    file = write_meta(disk, 5, b"the node's state")
    raw = disk.read_at(file.name, 0, disk.size(file.name))
    wrong = [raw[:length] for length in range(len(raw))]
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        wrong.append(bytes(flipped))
    for image in [*wrong, raw + b"\0"]:
        disk.remove(file.name)
        disk.append(file.name, image)
        with pytest.raises(StorageError, match=rf"{file.name}: damaged at byte \d+"):
            read_meta(disk, file)
    disk.remove(file.name)
    with pytest.raises(StorageError, match="the manifest names it, and it is not there"):
        read_meta(disk, file)
