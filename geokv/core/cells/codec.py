"""The bytes of a cell: frames of one policy, of which any number may stand behind each other and mean their join.

    cell  = frame+                      append(stored, delta) = stored + delta: nothing is decoded
    frame = tag, format, length, body   fold(cell)            = one frame, the canonical one
    body  = origins: name (front-coded), spans, number of items
            widths; numbers of all items, newest first; lengths of all payloads; payloads
            marks, where there are any

A replica appends deltas to what it has stored, and folds them when they outgrow it, at a read, a flush or a compaction: so a
small delta into a large set costs the delta. What is appended is folded after at most as many bytes again, so a cell is at most
twice as large as it need be, and each byte is decoded a constant number of times.

Invariants: `decode(encode(state)) == state`; one state has one encoding, and a frame that is not it is refused (RecordError);
every count is checked against the bytes that are left before anything is made of it; on folded cells `merge` is commutative,
associative and idempotent, byte for byte.
Format page: docs/formats/cells.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from operator import sub
from struct import Struct
from struct import error as struct_error
from typing import Final

from geokv.core.cells.context import NUMBER_MAX, CausalContext, Spans, is_within
from geokv.core.cells.state import CellState, Totals
from geokv.core.cells.varint import append_varint, read_varint, varint
from geokv.core.limits import APPENDED_BYTES_MIN
from geokv.core.origin import PACKED_BYTES_MAX, is_origin
from geokv.errors import InvalidRequest, RecordError

FORMAT: Final = 1
TOKEN_TAG: Final = 0xC7
TOKEN_BYTES_MAX: Final = 64 * 1024
_WIDTHS: Final = "BHIQ"  # codes 0 to 3: 1, 2, 4 and 8 bytes
_HAS_MARKS: Final = 16
_NO_DOTS: Final[dict[int, bytes]] = {}
_Counts = list[tuple[bytes, int, int]]  # (origin, its last dot, how many items)


# --- cells ----------------------------------------------------------------------------------------------------------


def encode(tag: int, state: CellState) -> bytes:
    """One frame: the canonical bytes of `state`."""
    if len(state.context.spans) == 1 and not state.marks and (small := _small(tag, state)):
        return small
    return framed(tag, encode_body(state))


def encode_body(state: CellState) -> bytes:
    """What a frame holds."""
    body = bytearray()
    _append_context(body, state.context, state.items)
    _append_items(body, state)
    if state.marks:
        _append_marks(body, state)
    return bytes(body)


def framed(tag: int, body: bytes) -> bytes:
    """A frame around a body."""
    return b"%c%c" % (tag, FORMAT) + varint(len(body)) + body


def _small(tag: int, state: CellState) -> bytes:
    """The same bytes for the usual delta, one item of one origin, in a third of the time; nothing where it is not so small."""
    ((origin, spans),) = state.context.spans.items()
    dots = state.items.get(origin, _NO_DOTS)
    if len(dots) != 1 or len(spans) > 8:
        return b""
    ((number, payload),) = dots.items()
    if number != spans[-1] or len(payload) > 127 or len(origin) > 127:
        return b""
    steps = varint(spans[0])
    for before, here in pairwise(spans):
        steps += varint(here - before)
    body = b"\1\0%c%b%c%b\1\0\0%c%b" % (len(origin), origin, len(spans) // 2, steps, len(payload), payload)
    return framed(tag, body)


def decode(tag: int, cell: bytes) -> CellState:
    """The join of all frames of `cell`. Raises RecordError when they are not frames of this policy, or damaged."""
    first, end = _frame(tag, cell, 0)
    state = decode_body(cell[first:end])
    while end < len(cell):
        first, end = _frame(tag, cell, end)
        state.join(decode_body(cell[first:end]))
    return state


def bodies(cell: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, body) of all frames, of whatever types. Raises RecordError."""
    end = 0
    while end < len(cell):
        tag = cell[end]
        first, end = _frame(tag, cell, end)
        yield tag, cell[first:end]


def is_one_frame(cell: bytes) -> bool:
    """Whether nothing is appended. Raises RecordError."""
    return _frame(cell[0], cell, 0)[1] == len(cell)


def tags(cell: bytes) -> set[int]:
    """The types of all frames. Raises RecordError."""
    return {tag for tag, _ in bodies(cell)}


def fold(tag: int, cell: bytes) -> bytes:
    """The canonical cell of one frame. Raises RecordError."""
    _, end = _frame(tag, cell, 0)
    return cell if end == len(cell) else encode(tag, decode(tag, cell))


def merge(tag: int, mine: bytes, theirs: bytes) -> bytes:
    """The join of two cells, canonical. Raises RecordError."""
    if mine == theirs:
        return fold(tag, mine)
    return encode(tag, decode(tag, mine + theirs))


def append(tag: int, stored: bytes, delta: bytes) -> bytes:
    """The same cell as their merge, not folded until what is appended outgrows what it is appended to. Raises RecordError."""
    both = stored + delta
    return encode(tag, decode(tag, both)) if has_outgrown(tag, both) else both


def has_outgrown(tag: int, cell: bytes) -> bool:
    """Whether what was appended to a cell is so much that it should be folded. Raises RecordError."""
    if len(cell) <= APPENDED_BYTES_MIN:
        return False
    _, end = _frame(tag, cell, 0)
    return len(cell) - end > max(end, APPENDED_BYTES_MIN)


def is_empty(tag: int, cell: bytes) -> bool:
    """Whether it holds no item: all that was seen is gone. A folded cell is not decoded for it. Raises RecordError."""
    first, end = _frame(tag, cell, 0)
    if end < len(cell):
        return not decode(tag, cell).items
    _, counts = _read_context(cell[first:end], 0, {}, has_items=True)
    return not counts


def _frame(tag: int, cell: bytes, offset: int) -> tuple[int, int]:
    """(where the body begins, where it ends) of the frame at `offset`."""
    if len(cell) - offset < 3:
        raise RecordError(f"cell at byte {offset}: {len(cell) - offset} bytes are no frame")
    if cell[offset] != tag:
        raise RecordError(f"cell at byte {offset}: type {cell[offset]}, where the namespace's policy has {tag}")
    if cell[offset + 1] != FORMAT:
        raise RecordError(f"cell at byte {offset}: format {cell[offset + 1]}, this version reads format {FORMAT}")
    length, first = read_varint(cell, offset + 2)
    if first + length > len(cell):
        raise RecordError(f"cell at byte {offset}: {length} bytes announced, {len(cell) - first} left")
    return first, first + length


# --- context tokens -------------------------------------------------------------------------------------------------


def encode_token(context: CausalContext) -> bytes:
    """The opaque causal token that a read returns and a write hands back."""
    token = bytearray((TOKEN_TAG, FORMAT))
    _append_context(token, context, None)
    return bytes(token)


def decode_token(token: bytes) -> CausalContext:
    """Raises InvalidRequest for bytes that no read has returned. What it claims is not trusted: see `CausalContext.beyond`."""
    if len(token) > TOKEN_BYTES_MAX:
        raise InvalidRequest(f"context of {len(token)} bytes: at most {TOKEN_BYTES_MAX}")
    try:
        if token[:2] != bytes((TOKEN_TAG, FORMAT)):
            raise RecordError("it begins otherwise")
        spans: dict[bytes, Spans] = {}
        offset, _ = _read_context(token, 2, spans, has_items=False)
        if offset != len(token):
            raise RecordError(f"{len(token) - offset} bytes too many")
    except RecordError as error:
        raise InvalidRequest(f"not a context: {error}; hand back what a read returned, unchanged") from error
    return CausalContext(spans)


# --- origins and what has been seen of them -------------------------------------------------------------------------


def _append_context(out: bytearray, context: CausalContext, items: dict[bytes, dict[int, bytes]] | None) -> None:
    append_varint(out, len(context.spans))
    before = b""
    for origin in sorted(context.spans):
        spans = context.spans[origin]
        shared = _shared(before, origin)
        out.append(shared)
        out.append(len(origin) - shared)
        out += origin[shared:]
        append_varint(out, len(spans) // 2)
        reached = 0
        for number in spans:
            append_varint(out, number - reached)
            reached = number
        if items is not None:
            append_varint(out, len(items.get(origin, ())))
        before = origin


@lru_cache(maxsize=8192)
def _shared(before: bytes, origin: bytes) -> int:
    """How many bytes both begin with."""
    length = 0
    for one, other in zip(before, origin, strict=False):
        if one != other:
            break
        length += 1
    return length


def _read_context(body: bytes, offset: int, spans: dict[bytes, Spans], has_items: bool) -> tuple[int, _Counts]:
    """Fill `spans`; returns the offset behind, and how many items follow of each origin."""
    count, offset = read_varint(body, offset)
    counts: _Counts = []
    before = b""
    for _ in range(count):
        origin, offset = _read_origin(body, offset, before)
        spans[origin], offset = _read_spans(body, offset)
        if has_items:
            items, offset = read_varint(body, offset)
            if items:
                counts.append((origin, spans[origin][-1], items))
        before = origin
    return offset, counts


def _read_origin(body: bytes, offset: int, before: bytes) -> tuple[bytes, int]:
    if offset + 2 > len(body):
        raise RecordError(f"origin at byte {offset} is cut off")
    shared, rest = body[offset], body[offset + 1]
    offset += 2
    origin = before[:shared] + body[offset : offset + rest]
    if len(origin) != shared + rest or len(origin) > PACKED_BYTES_MAX or not is_origin(origin):
        raise RecordError(f"no origin at byte {offset}: {origin!r}")
    if origin <= before or (shared < len(before) and before[shared] == origin[shared]):
        raise RecordError(f"origin at byte {offset} is out of order, or not in its shortest form")
    return origin, offset + rest


def _read_spans(body: bytes, offset: int) -> tuple[Spans, int]:
    count, offset = read_varint(body, offset)
    if count == 1:
        after, offset = read_varint(body, offset)
        length, offset = read_varint(body, offset)
        if 0 < length <= NUMBER_MAX - after:
            return (after, after + length), offset
        raise RecordError(f"a span of {length} dots behind {after} at byte {offset}")
    if not 0 < count <= len(body) - offset:
        raise RecordError(f"{count} spans at byte {offset}")
    spans: list[int] = []
    reached = 0
    for index in range(2 * count):
        step, offset = read_varint(body, offset)
        if step == 0 and index > 0:
            raise RecordError(f"an empty span, or two that touch, at byte {offset}")
        reached += step
        spans.append(reached)
    if reached > NUMBER_MAX:
        raise RecordError(f"dot {reached} at byte {offset}: at most {NUMBER_MAX}")
    return tuple(spans), offset


# --- items, in columns ----------------------------------------------------------------------------------------------


def _append_items(out: bytearray, state: CellState) -> None:
    steps: list[int] = []
    payloads: list[bytes] = []
    items = state.items
    for origin in sorted(items):
        dots = items[origin]
        numbers = sorted(dots, reverse=True)
        steps += map(sub, chain((state.context.spans[origin][-1],), numbers), numbers)
        payloads += [dots[number] for number in numbers]
    lengths = list(map(len, payloads))
    if len(steps) == 1 and steps[0] < 256 and lengths[0] < 256:
        out += b"%c%c%c%b" % (_HAS_MARKS if state.marks else 0, steps[0], lengths[0], payloads[0])
        return
    step_width, length_width = _width(steps), _width(lengths)
    out.append(step_width | length_width << 2 | (_HAS_MARKS if state.marks else 0))
    out += Struct(f"<{len(steps)}{_WIDTHS[step_width]}").pack(*steps)
    out += Struct(f"<{len(lengths)}{_WIDTHS[length_width]}").pack(*lengths)
    out += b"".join(payloads)


def _width(column: list[int]) -> int:
    """The code of the narrowest width that holds the column."""
    highest = max(column, default=0)
    return 0 if highest < 1 << 8 else 1 if highest < 1 << 16 else 2 if highest < 1 << 32 else 3


def decode_body(body: bytes) -> CellState:
    """Inverse of `encode_body`. Raises RecordError."""
    state = CellState()
    if body[:2] == b"\1\0" and _decode_small(body, state):
        return state
    offset, counts = _read_context(body, 0, state.context.spans, has_items=True)
    if offset >= len(body):
        raise RecordError("the frame ends before its items")
    widths = body[offset]
    offset = _read_items(body, offset + 1, widths, counts, state)
    if widths & _HAS_MARKS:
        offset = _read_marks(body, offset, state)
    if offset != len(body) or widths > _HAS_MARKS | 15:
        raise RecordError(f"the frame has {len(body)} bytes, {offset} of which are understood")
    return state


def _decode_small(body: bytes, state: CellState) -> bool:
    """The usual delta, one item of one origin, in a third of the time; False, and nothing done, where it is another."""
    at = 3 + body[2] if len(body) > 2 else 0
    if len(body) - at < 8 or at > 3 + PACKED_BYTES_MAX or not 0 < body[at] <= 4 or not is_origin(body[3:at]):
        return False
    spans, offset = _read_spans(body, at)
    if body[offset : offset + 3] != b"\1\0\0":
        return False
    start = offset + 4
    if len(body) < start or len(body) != start + body[start - 1]:
        return False
    origin = body[3:at]
    state.context.spans[origin] = spans
    state.items[origin] = {spans[-1]: body[start:]}
    return True


def _read_items(body: bytes, offset: int, widths: int, counts: _Counts, state: CellState) -> int:
    if len(counts) == 1 and counts[0][2] == 1 and not widths & 15 and offset + 2 <= len(body):
        return _read_item(body, offset, counts[0][0], counts[0][1], state)
    total = sum([count for _, _, count in counts])
    steps, offset = _read_column(body, offset, total, widths & 3)
    lengths, offset = _read_column(body, offset, total, widths >> 2 & 3)
    ends = list(accumulate(lengths, initial=offset))
    if ends[-1] > len(body):
        raise RecordError(f"payloads up to byte {ends[-1]} in a frame of {len(body)}")
    start = 0
    for origin, last, count in counts:
        stop = start + count
        numbers = [last - step for step in accumulate(steps[start:stop])]
        spans = state.context.spans[origin]
        has_twins = 0 in steps[start + 1 : stop]
        if has_twins or numbers[-1] <= spans[0] or (len(spans) > 2 and not all(is_within(spans, n) for n in numbers)):
            raise RecordError("an item stands twice, or has not been seen")
        payloads = [body[ends[index] : ends[index + 1]] for index in range(start, stop)]
        state.items[origin] = dict(zip(numbers, payloads, strict=True))
        start = stop
    return ends[-1]


def _read_item(body: bytes, offset: int, origin: bytes, last: int, state: CellState) -> int:
    """The one item of a delta that replaced others' items, without columns."""
    number, start = last - body[offset], offset + 2
    end = start + body[offset + 1]
    if end > len(body):
        raise RecordError(f"payloads up to byte {end} in a frame of {len(body)}")
    if not is_within(state.context.spans[origin], number):
        raise RecordError("an item has not been seen")
    state.items[origin] = {number: body[start:end]}
    return end


def _read_column(body: bytes, offset: int, count: int, code: int) -> tuple[tuple[int, ...], int]:
    if count > len(body) - offset:
        raise RecordError(f"{count} items in {len(body) - offset} bytes")
    column = Struct(f"<{count}{_WIDTHS[code]}")
    try:
        numbers: tuple[int, ...] = column.unpack_from(body, offset)
    except struct_error as error:
        raise RecordError(f"a column at byte {offset} is cut off: {error}") from error
    if code and max(numbers, default=0) < 1 << (4 << code):
        raise RecordError(f"the column at byte {offset} is wider than it need be")
    return numbers, offset + column.size


# --- marks ----------------------------------------------------------------------------------------------------------


def _append_marks(out: bytearray, state: CellState) -> None:
    for origin in sorted(state.context.spans):
        marks = state.marks.get(origin, {})
        append_varint(out, len(marks))
        for path in sorted(marks):
            append_varint(out, len(path))
            out += path
            for number in marks[path]:
                append_varint(out, number)


def _read_marks(body: bytes, offset: int, state: CellState) -> int:
    for origin in state.context.spans:
        count, offset = read_varint(body, offset)
        marks: dict[bytes, Totals] = {}
        before: bytes | None = None
        for _ in range(count):
            length, offset = read_varint(body, offset)
            path = body[offset : offset + length]
            if len(path) != length or (before is not None and path <= before):
                raise RecordError(f"a mark at byte {offset} is cut off or out of order")
            birth, offset = read_varint(body, offset + length)
            up, offset = read_varint(body, offset)
            down, offset = read_varint(body, offset)
            marks[path] = Totals(birth, up, down)
            before = path
        if marks:
            state.marks[origin] = marks
    if not state.marks:
        raise RecordError("marks are announced, and there are none")
    return offset
