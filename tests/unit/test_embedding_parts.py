"""How texts are cut into parts for a model: whole, never too large, and as cheap as can be."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from rowmill_worker.children.parts import cut
from tests.unit.test_embedding_models import double, vectors

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=12).map(sorted)


def cost(lengths: Sequence[float], sizes: Sequence[int], fixed: float) -> float:
    total, start = 0.0, 0
    for size in sizes:
        total += fixed + size * lengths[start + size - 1]
        start += size
    return total


def least(lengths: Sequence[float], most: int, fixed: float) -> float:
    """By trying everything."""

    @cache
    def of(count: int) -> float:
        if count == 0:
            return 0.0
        return min(of(count - size) + fixed + size * lengths[count - 1] for size in range(1, min(most, count) + 1))

    return of(len(lengths))


@given(lengths=LENGTHS, most=st.integers(1, 13), fixed=st.integers(0, 60))
def test_no_cut_costs_less(lengths: list[float], most: int, fixed: float) -> None:
    sizes = cut(lengths, most=most, fixed=fixed)
    assert sum(sizes) == len(lengths)
    assert all(1 <= size <= most for size in sizes)
    assert cost(lengths, sizes, fixed) == least(lengths, most, fixed)


@settings(max_examples=25)
@given(count=st.integers(129, 4_096), most=st.integers(1, 4_096), seed=st.integers(0, 9))
def test_large_batches_are_cut_in_few_steps_and_no_worse_than_evenly(count: int, most: int, seed: int) -> None:
    lengths = sorted(random.Random(seed).uniform(2, 512) for _ in range(count))
    sizes = cut(lengths, most=most, fixed=128)
    assert sum(sizes) == count
    assert all(1 <= size <= most for size in sizes)
    step = max(1, most // max(1, count // 128)) * max(1, count // 128) if most >= count // 128 else most
    even = [min(step, count - start) for start in range(0, count, step)]
    assert cost(lengths, sizes, 128) <= cost(lengths, even, 128)


def test_nothing_to_cut() -> None:
    assert cut([], most=8, fixed=1) == []


def test_a_batch_of_mixed_lengths_pads_little() -> None:
    """As much as one that is sorted as a whole, in parts of 32: within a tenth."""
    rng = random.Random(7)
    texts = [rng.choice((6, 10, 18, 32, 62, 122)) for _ in range(512)]
    gathered = 0.0
    for start in range(0, 512, 64):
        batch = sorted(texts[start : start + 64])
        gathered += cost(batch, cut(batch, most=32, fixed=128), 35)
    whole, halves = sorted(texts), [sorted(texts[start : start + 64]) for start in range(0, 512, 64)]
    assert gathered < 1.1 * cost(whole, [32] * 16, 35)
    assert sum(cost(batch, [32, 32], 35) for batch in halves) > 1.4 * gathered, "what halves of a batch would cost"


def test_the_model_is_given_the_parts_and_rows_their_own_vectors() -> None:
    embedder, model = double("double-1000")
    texts = [f"{'word ' * (40 if n % 4 == 0 else 1)}{n}" for n in range(40)]
    together = vectors(embedder, texts)
    assert model.parts == [10, 30], "the long ones first, and nothing short beside them"
    for text, vector in zip(texts[:8], together[:8], strict=True):
        assert vectors(embedder, [text]) == [vector]
