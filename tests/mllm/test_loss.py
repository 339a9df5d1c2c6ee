import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from mllm.loss import per_example_loss
from umbel.errors import ModelError


def naive(logits, labels):
    out = []
    for row, target in zip(logits.double(), labels, strict=True):
        terms = [-torch.log_softmax(row[t], -1)[target[t + 1]] for t in range(len(target) - 1) if target[t + 1] != -100]
        out.append(torch.stack(terms).mean() if terms else torch.tensor(0.0, dtype=torch.float64))
    return torch.stack(out)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(2, 9), st.integers(0, 2**31))
def test_equals_the_definition(n, length, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, length, vocabulary, generator=generator)
    labels = torch.randint(0, vocabulary, (n, length), generator=generator)
    labels[torch.rand(n, length, generator=generator) < 0.5] = -100
    loss = per_example_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss.double(), naive(logits, labels), atol=1e-5)


def test_no_example_moves_the_gradient_of_another():
    logits = torch.randn(3, 6, 11, requires_grad=True)
    labels = torch.randint(0, 11, (3, 6))
    (together,) = torch.autograd.grad(per_example_loss(logits, labels).sum(), logits)
    alone = logits[1:2].detach().requires_grad_()
    (single,) = torch.autograd.grad(per_example_loss(alone, labels[1:2]).sum(), alone)
    assert torch.equal(together[1:2], single)
    mean = functional.cross_entropy(logits[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1))
    assert torch.allclose(per_example_loss(logits, labels).mean(), mean, atol=1e-6)


def test_an_example_without_labels_gives_zero_and_no_gradient():
    logits = torch.randn(2, 4, 5, requires_grad=True)
    labels = torch.tensor([[-100] * 4, [1, 2, 3, 4]])
    loss = per_example_loss(logits, labels)
    loss.sum().backward()
    assert loss[0] == 0
    assert torch.count_nonzero(logits.grad[0]) == 0
    assert torch.count_nonzero(logits.grad[1]) > 0


def test_sum_bfloat16_and_a_broken_example():
    logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    assert torch.allclose(per_example_loss(logits, labels, "sum"), 4 * per_example_loss(logits, labels))
    assert per_example_loss(logits.bfloat16(), labels).dtype == torch.float32
    logits[0, 0, 0] = float("nan")
    loss = per_example_loss(logits, labels)
    assert torch.isnan(loss[0])
    assert torch.isfinite(loss[1])
    assert per_example_loss(logits[:0], labels[:0]).shape == (0,)


def test_refusals():
    with pytest.raises(ModelError, match="same batch"):
        per_example_loss(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ModelError, match="unknown"):
        per_example_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long), "max")
