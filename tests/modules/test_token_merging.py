"""Token merging: against a loop over tokens, and what holds for any tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.token_merging import HIDDEN, bias, match, merge


def by_a_loop(metric, size, classes, count):
    """Return the groups of tokens of one row, in the order after merging."""
    others = range(classes, len(metric))
    a, b = [s for s in others if s % 2 == 0], [s for s in others if s % 2 == 1]
    cosine = lambda s, t: torch.cosine_similarity(metric[s], metric[t], dim=0).item()  # noqa: E731
    real = [t for t in b if size[t] > 0]
    best = {s: max(real, key=lambda t, s=s: cosine(s, t)) for s in a}
    order = sorted(a, key=lambda s: (size[s] == 0, cosine(s, best[s])), reverse=True)
    merged = set(order[:count])
    groups = [[s] for s in range(classes)] + [[s] for s in a if s not in merged]
    return groups + [[t] + [s for s in a if s in merged and best[s] == t] for t in b]


@settings(max_examples=25)
@given(st.integers(0, 999), st.integers(1, 4), st.integers(4, 9), st.integers(0, 4))
def test_against_a_loop(seed, classes, others, count):
    generator = torch.Generator().manual_seed(seed)
    tokens = classes + others
    count = min(count, others // 2)
    x, metric = (torch.randn(3, tokens, 5, generator=generator) for _ in range(2))
    size = torch.randint(1, 4, (3, tokens), generator=generator).float()
    hidden = [s for s in range(classes, tokens) if s % 2 == 0][:1] + [s for s in range(classes, tokens) if s % 2][:1]
    size[0, hidden] = 0
    place = match(metric, size, classes, count)
    merged, sizes = merge(x, size, place, count)
    assert merged.shape == (3, tokens - count, 5)
    for row in range(3):
        groups = by_a_loop(metric[row], size[row], classes, count)
        assert len(groups) == tokens - count
        for after, group in enumerate(groups):
            real = [s for s in group if size[row, s] > 0]
            if real:  # a token of size zero may go anywhere
                assert [s for s in range(tokens) if place[row, s] == after and size[row, s] > 0] == sorted(real)
                expected = sum(size[row, s] * x[row, s] for s in real) / sum(size[row, s] for s in real)
                torch.testing.assert_close(merged[row, after], expected, atol=1e-6, rtol=1e-5)
            assert sizes[row, after] == sum(size[row, s] for s in real)


def test_padding_changes_no_choice():
    """A row with a token of size zero in each set merges its other tokens as the row without the two."""
    x = torch.randn(1, 9, 5, generator=torch.Generator().manual_seed(0))
    whole = match(x, torch.ones(1, 9), 1, 2)
    padded = torch.cat([x, torch.full((1, 2, 5), 3.0)], dim=1)
    size = torch.ones(1, 11)
    size[:, 9:] = 0
    place = match(padded, size, 1, 3)  # the one of set A goes first
    together = lambda place, count: {frozenset((place[0, :9] == p).nonzero().flatten().tolist()) for p in range(count)}  # noqa: E731
    assert together(place, 8) - {frozenset()} == together(whole, 7)


def test_nothing_but_padding_is_zero_and_finite():
    x, size = torch.randn(1, 5, 4), torch.zeros(1, 5)
    merged, sizes = merge(x, size, match(x, size, 1, 2), 2)
    assert torch.equal(merged, torch.zeros(1, 3, 4))
    assert torch.equal(sizes, torch.zeros(1, 3))
    assert torch.equal(bias(sizes), torch.full((1, 1, 1, 3), HIDDEN))


def test_the_mean_has_a_gradient_and_the_choice_has_none():
    x = torch.randn(2, 7, 4, requires_grad=True)
    merged, _ = merge(x, torch.ones(2, 7), match(x, torch.ones(2, 7), 1, 2), 2)
    merged.sum().backward()
    shares = x.grad[:, :, 0]
    assert shares.sum() == pytest.approx(2 * 5)  # every token after merging is a mean
    assert (shares > 0).all()
