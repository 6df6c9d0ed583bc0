"""The causal context: spans that rest on the chain of an origin's dots."""

from hypothesis import given
from hypothesis import strategies as st

from geokv.core.cells.context import CausalContext, join_spans, subtract_spans
from geokv.core.origin import Origin

A = Origin("eu-west", "eu-1", 7).packed()
B = Origin("us-east", "us-1", 7).packed()

_SETS = st.frozensets(st.integers(1, 24))


def spans_of(numbers: frozenset[int]) -> tuple[int, ...]:
    """The spans that contain exactly these numbers."""
    spans: tuple[int, ...] = ()
    for number in sorted(numbers):
        spans = join_spans(spans, (number - 1, number)) if spans else (number - 1, number)
    return spans


def numbers_in(spans: tuple[int, ...]) -> frozenset[int]:
    return frozenset(n for i in range(0, len(spans), 2) for n in range(spans[i] + 1, spans[i + 1] + 1))


@given(mine=_SETS, theirs=_SETS)
def test_spans_are_sets_of_numbers(mine: frozenset[int], theirs: frozenset[int]) -> None:
    """Joining is the union, subtracting the difference, and one set has one form."""
    joined = join_spans(spans_of(mine), spans_of(theirs)) if mine and theirs else spans_of(mine | theirs)
    assert joined == spans_of(mine | theirs) and numbers_in(joined) == mine | theirs
    assert subtract_spans(spans_of(mine), spans_of(theirs)) == spans_of(mine - theirs)


@given(
    links=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    order=st.randoms(use_true_random=False),
    doubled=st.integers(0, 3),
)
def test_the_vector_advances_along_the_chain_in_any_order(links: list[int], order: object, doubled: int) -> None:
    """Links that are reordered and doubled end in one span; until the first has come, nothing below is claimed."""
    dots = [sum(links[: index + 1]) for index in range(len(links))]
    chain = list(zip([0, *dots], dots, strict=False))
    came = chain + chain[:doubled]
    order.shuffle(came)  # type: ignore[attr-defined]
    context = CausalContext()
    missing = set(chain)
    for after, upto in came:
        context.add(A, after, upto)
        missing.discard((after, upto))
        assert all(not context.contains(A, upto) for _, upto in missing)
    assert context.spans == {A: (0, dots[-1])} and context.last(A) == dots[-1]


def test_a_lost_link_holds_the_vector_back() -> None:
    """What came behind a gap is known exactly, and the gap is not."""
    context = CausalContext()
    context.add(A, 0, 3)
    context.add(A, 7, 9)
    assert context.spans == {A: (0, 3, 7, 9)}
    assert context.contains(A, 9) and not context.contains(A, 5)
    context.add(A, 3, 7)
    assert context.spans == {A: (0, 9)}


def test_what_lies_beyond_every_frontier_is_named() -> None:
    """A forged or a future entry is found by comparing with what the owners have."""
    context = CausalContext({A: (0, 12), B: (0, (1 << 63) - 1)})
    assert context.beyond({A: 12, B: 500}) == [(B, (1 << 63) - 1)]
    assert context.beyond({A: 12, B: 1 << 63}) == []
    assert not CausalContext({A: (0, 11)}).covers(CausalContext({A: (0, 12)}))
    assert CausalContext({A: (0, 12)}).covers(CausalContext({A: (3, 5, 11, 12)}))
