"""Hypothesis strategies for every value that has a wire form: one builder per message, from its own rules."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from geokv.core.origin import Origin
from geokv.core.quorum import Consistency
from geokv.protocol import messages as m
from geokv.protocol.requests import AdminReply, AdminRequest, Detail, Outcome, ReadBatch, ReadReply, WriteBatch, WriteReply

PARTITIONS = 256
u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
small = st.binary(max_size=24)
word = st.text(st.characters(codec="utf-8"), max_size=12)
name = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=31)
partition = st.integers(0, PARTITIONS - 1)
origin = st.builds(Origin, name, name, u64).map(Origin.packed)
one_origin = Origin("eu", "n1", 5).packed()
ballot = st.tuples(st.integers(1, 2**64 - 1), word)
accepted = st.none() | st.tuples(ballot, small)


def lists(each: SearchStrategy, most: int = 5) -> SearchStrategy:
    return st.lists(each, max_size=most)


@st.composite
def columns(draw, build, each: SearchStrategy, *others: SearchStrategy):
    """`build` of columns of one length."""
    length = draw(st.integers(0, 5))
    return build(*(draw(st.lists(one, min_size=length, max_size=length)) for one in (each, *others)))


heads = st.builds(
    lambda namespace, packed, pairs: m.StreamHeads(namespace, packed, [p for p, _ in pairs], [n for _, n in pairs]),
    u64,
    origin,
    lists(st.tuples(partition, u64)),
)
held = st.builds(m.StreamHeld, u64, partition, origin, u64, lists(u64), u64, st.booleans())
closing = st.tuples(origin, partition, small)
amount = st.integers(0, 2**130)
rights = st.tuples(amount.filter(bool), amount, amount)
detail = st.builds(Detail, word, u32, u32, lists(word).map(tuple), u64, u64, st.none() | rights)
level = st.sampled_from(list(Consistency))
outcome = st.sampled_from([int(one) for one in Outcome])
byte = st.integers(0, 255)


@st.composite
def write_batches(draw) -> WriteBatch:
    n = draw(st.integers(0, 6))

    def column(each: SearchStrategy) -> list:
        return draw(st.lists(each, min_size=n, max_size=n))

    return WriteBatch(
        namespace=draw(word),
        keys=column(small),
        values=column(small | st.none()),
        level=draw(level),
        w=draw(byte),
        ttl_ms=draw(st.integers(-1, 2**62)),
        replicated_to=draw(byte),
        timeout_ms=draw(st.integers(1, 300_000)),
        seen_hlc=draw(u64),
        operations=column(st.binary(min_size=16, max_size=16)) if draw(st.booleans()) else [],
        contexts=column(small) if draw(st.booleans()) else [],
        ring_version=draw(u64),
        has_updates=draw(st.booleans()),
        remaining_ms=column(u32) if draw(st.booleans()) else [],
        **draw(
            st.just({})
            | st.fixed_dictionaries({"tried": st.lists(word, min_size=1, max_size=3).map(tuple), "first_try_ms": u64})
        ),
    )


read_batches = st.builds(ReadBatch, word, lists(small), level, byte, st.integers(1, 300_000), u64, st.booleans(), u64)


def _details(n: int) -> SearchStrategy:
    return st.dictionaries(st.integers(0, n - 1), detail, max_size=2) if n else st.just({})


@st.composite
def write_replies(draw) -> WriteReply:
    n = draw(st.integers(0, 5))
    several = [draw(st.lists(each, min_size=n, max_size=n)) for each in (outcome, u64, byte, byte)]
    contexts = draw(st.just([]) | st.lists(small, min_size=n, max_size=n))
    return WriteReply(*several, draw(word), draw(u64), draw(u64), draw(_details(n)), contexts)


@st.composite
def read_replies(draw) -> ReadReply:
    n = draw(st.integers(0, 5))
    several = [draw(st.lists(each, min_size=n, max_size=n)) for each in (outcome, st.none() | small, u64, byte)]
    policy = draw(st.sampled_from(["", "siblings", "set_aw"]))
    contexts = draw(st.lists(small, min_size=n, max_size=n)) if policy else []
    return ReadReply(*several, draw(word), draw(u64), draw(u64), draw(_details(n)), contexts, policy)


json_leaf = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
json_tree = st.dictionaries(
    word, st.recursive(json_leaf | word, lambda kids: lists(kids) | st.dictionaries(word, kids, max_size=3), max_leaves=6)
)
admin_requests = st.builds(AdminRequest, word.filter(bool), json_tree, st.integers(1, 300_000))
admin_replies = st.builds(AdminReply, st.sampled_from(list(Outcome)), json_tree, word)

MESSAGES: dict[type, SearchStrategy] = {
    m.Replicate: st.builds(m.Replicate, u64, small),
    m.Replicated: st.builds(m.Replicated, u64, st.booleans(), lists(st.tuples(u32, u64)), lists(origin), lists(u64)),
    m.ReadCells: st.builds(m.ReadCells, u64, u64, lists(small), st.booleans()),
    m.CellsRead: st.builds(m.CellsRead, u64, lists(small), st.integers(0, 4).map(lambda n: b"\1\2\3\4\0\6\7\x08" * n), word),
    m.Forward: st.builds(m.Forward, u64, write_batches()) | st.builds(m.Forward, u64, st.none(), read_batches),
    m.Forwarded: st.builds(m.Forwarded, u64, write_replies()) | st.builds(m.Forwarded, u64, st.none(), read_replies()),
    m.Statement: st.builds(
        m.Statement,
        u64,
        u64,
        u64,
        u64,
        u64,
        st.booleans(),
        lists(heads),
        lists(heads),
        st.dictionaries(word, u64, max_size=3),
        st.dictionaries(u64, u64, max_size=3),
    ),
    m.TakenBack: st.builds(m.TakenBack, u64, st.dictionaries(u64, lists(partition), max_size=3), lists(heads)),
    m.FeedOpen: st.builds(m.FeedOpen, u64, st.booleans(), lists(partition), lists(heads)),
    m.FeedBatch: st.builds(
        m.FeedBatch,
        u64,
        u64,
        st.integers(0, 2 * 1024 * 1024),
        small,
        u64,
        st.dictionaries(partition, u64, max_size=4),
        lists(heads),
        u64,
        u64,
    ),
    m.FeedAck: st.builds(m.FeedAck, u64, u64, u64, lists(heads), u64, u64),
    m.FeedClose: st.builds(m.FeedClose, u64),
    m.FeedRefused: st.builds(m.FeedRefused, u64, word),
    m.FeedHoles: st.builds(m.FeedHoles, u64, lists(heads)),
    m.Prepare: st.builds(m.Prepare, ballot, lists(small)),
    m.Promised: st.one_of(
        columns(lambda items, values, chosen: m.Promised((1, "a"), items, values, chosen), small, accepted, st.booleans()),
        st.builds(lambda b, items, higher: m.Promised(b, items, [], [], True, higher), ballot, lists(small), ballot),
    ),
    m.Accept: columns(lambda items, values: m.Accept((7, "b"), items, values), small, small),
    m.Accepted: st.builds(m.Accepted, ballot, lists(small), st.booleans(), ballot),
    m.Chosen: columns(m.Chosen, small, small),
    m.CopyItems: st.builds(m.CopyItems, u64, small),
    m.ItemsCopied: columns(
        lambda items, promised, values, chosen: m.ItemsCopied(1, True, items, promised, values, chosen, False),
        small,
        ballot,
        accepted,
        st.booleans(),
    ),
    m.DefinitionsWanted: st.builds(m.DefinitionsWanted, word, u64),
    m.Definitions: st.builds(m.Definitions, word, u64, lists(small)),
    m.RightsAsk: st.builds(m.RightsAsk, u64, u64, small, origin, amount, amount, amount),
    m.RightsGiven: columns(
        lambda receivers, totals: m.RightsGiven(7, 8, b"k", one_origin, receivers, totals, 2**70),
        origin,
        amount,
    ),
    m.CloseAsk: st.builds(m.CloseAsk, u64, word, st.just(b"") | origin, lists(origin), lists(partition), lists(u64), u64),
    m.CloseAnswer: st.builds(m.CloseAnswer, u64, lists(origin), lists(partition), lists(held), lists(closing), word),
    m.RecordsWanted: st.builds(m.RecordsWanted, u64, u64, partition, origin, lists(u64)),
    m.CloseFill: st.builds(m.CloseFill, u64, small),
    m.CloseFilled: st.builds(m.CloseFilled, u64, lists(held)),
    m.CellsFetch: st.builds(m.CellsFetch, u64, u64, partition, origin, name),
    m.CellsWanted: st.builds(m.CellsWanted, u64, u64, partition, origin, small, u64),
    m.CellsPage: st.builds(m.CellsPage, u64, u64, partition, origin, small, u64, small, st.booleans()),
    m.CloseTell: st.builds(m.CloseTell, u64, lists(closing)),
    m.CloseTold: st.builds(m.CloseTold, u64, lists(st.tuples(origin, partition))),
    m.CloseForget: st.builds(m.CloseForget, lists(st.tuples(origin, partition))),
    m.StabilityAsk: st.builds(m.StabilityAsk, u64, u64, lists(partition)),
    m.StabilityAnswer: st.builds(
        m.StabilityAnswer,
        u64,
        u64,
        origin,
        lists(partition),
        lists(partition),
        lists(partition),
        u64,
        lists(heads),
        lists(heads),
    ),
    m.OperationsAsk: st.builds(
        lambda ask, namespace, ids, age_ms, nodes: m.OperationsAsk(
            ask, namespace, [p for p, _ in ids], b"".join(one for _, one in ids), age_ms, nodes
        ),
        u64,
        u64,
        lists(st.tuples(partition, st.binary(min_size=16, max_size=16))),
        u64,
        lists(word),
    ),
    m.OperationsTold: st.builds(m.OperationsTold, u64, lists(st.integers(0, 4)).map(bytes), small, lists(u64), word),
}
any_message = st.one_of(*MESSAGES.values())
