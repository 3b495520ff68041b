"""The loss against loops over its definition."""

import math

import pytest
import torch

from modules.losses import symmetric_info_nce


def test_it_is_the_mean_of_both_directions():
    torch.manual_seed(0)
    logits = torch.randn(5, 5) * 3
    total = 0.0
    for i in range(5):
        row = math.log(sum(math.exp(float(logits[i, j])) for j in range(5))) - float(logits[i, i])
        column = math.log(sum(math.exp(float(logits[j, i])) for j in range(5))) - float(logits[i, i])
        total += (row + column) / 2
    assert float(symmetric_info_nce(logits)) == pytest.approx(total / 5, rel=1e-6)


def test_no_knowledge_costs_log_batch():
    assert float(symmetric_info_nce(torch.zeros(8, 8))) == pytest.approx(math.log(8))


def test_oblong_logits_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        symmetric_info_nce(torch.zeros(2, 3))
