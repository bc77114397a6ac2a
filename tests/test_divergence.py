"""Divergences against hand-made values and scipy-free references; the tail that keeps a truncated KL honest."""

from math import inf, isclose, log

import pytest
import torch

from esalign.distill.divergence import (
    DIVERGENCES,
    append_tail,
    coarsen,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    top_support,
)

NAMES = ("reverse_kl", "forward_kl", "jensen_shannon")


def distributions(seed, rows=8, vocab=50, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, rows, vocab, generator=generator, dtype=dtype) * 3
    return logits.log_softmax(-1)


def test_values_of_two_coins():
    student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    assert isclose(float(reverse_kl(student, teacher)), 0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1), rel_tol=1e-6)
    assert isclose(float(forward_kl(student, teacher)), 0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5), rel_tol=1e-6)
    expected = 0.5 * (0.5 * log(0.5 / 0.7) + 0.5 * log(0.5 / 0.3) + 0.9 * log(0.9 / 0.7) + 0.1 * log(0.1 / 0.3))
    assert isclose(float(jensen_shannon(student, teacher)), expected, rel_tol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_divergence_is_zero_only_between_equals(name):
    student, teacher = distributions(0)
    assert DIVERGENCES[name](student, student.clone()).abs().max() < 1e-12
    assert DIVERGENCES[name](student, teacher).min() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_token_that_neither_can_emit_changes_neither_value_nor_gradient(name):
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([1.0, 0.5, -0.5], dtype=torch.float64).log_softmax(-1)
    plain = DIVERGENCES[name](logits.log_softmax(-1), teacher)
    (gradient,) = torch.autograd.grad(plain, logits)

    masked_logits = torch.cat([logits, torch.tensor([-inf], dtype=torch.float64)])
    masked = DIVERGENCES[name](masked_logits.log_softmax(-1), torch.cat([teacher, torch.tensor([-inf]).double()]))
    (masked_gradient,) = torch.autograd.grad(masked, logits)
    assert torch.allclose(plain, masked, atol=1e-12)
    assert torch.allclose(gradient, masked_gradient, atol=1e-12)


def test_kl_is_infinite_where_the_second_cannot_emit_what_the_first_can():
    student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]).log()
    assert reverse_kl(student, teacher) == inf
    assert isclose(float(forward_kl(student, teacher)), log(2), rel_tol=1e-6)
    assert float(jensen_shannon(student, teacher)) < log(2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 4, 16, 49, 50, 500])
def test_divergence_with_tail_is_never_negative_and_at_most_the_full_one(name, size):
    student, teacher = distributions(1)
    support = top_support(student, size)
    coarse = DIVERGENCES[name](coarsen(student, support), coarsen(teacher, support))
    full = DIVERGENCES[name](student, teacher)
    assert (coarse >= -1e-12).all()
    assert (coarse <= full + 1e-12).all()
    if size >= 50:
        assert torch.allclose(coarse, full, atol=1e-9)


def test_without_a_tail_a_truncated_reverse_kl_is_negative():
    """Why the tail exists: mass moved off the support would look better than the teacher itself."""
    teacher = torch.tensor([0.4, 0.4, 0.2]).log()
    student = torch.tensor([0.1, 0.1, 0.8]).log()
    support = torch.tensor([0, 1])
    assert float((student[:2].exp() * (student[:2] - teacher[:2])).sum()) < -0.1
    assert float(reverse_kl(coarsen(student, support), coarsen(teacher, support))) > 0.1


def test_both_tails_agree_and_the_exact_one_is_exact_when_tiny():
    student, _ = distributions(2)
    support = top_support(student, 5)
    assert torch.allclose(coarsen(student, support), append_tail(student.gather(-1, support)), atol=1e-9)

    peaked = torch.tensor([0.0, -30.0, -31.0]).log_softmax(-1)  # float32: 1 - p rounds to 0
    exact = coarsen(peaked, torch.tensor([0]))[-1]
    assert isclose(float(exact), float(torch.tensor([-30.0, -31.0]).logsumexp(-1)), rel_tol=1e-6)
    assert append_tail(peaked[:1])[-1] == torch.tensor(torch.finfo(torch.float32).eps).log()


@pytest.mark.parametrize("tail", [coarsen, lambda x, s: append_tail(x.gather(-1, s))])
def test_gradient_on_a_support_with_tail_matches_finite_differences(tail):
    torch.manual_seed(3)
    logits = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 12, dtype=torch.float64).log_softmax(-1)
    support = top_support(logits.detach(), 4)

    def loss(x):
        return reverse_kl(tail(x.log_softmax(-1), support), coarsen(teacher, support)).sum()

    assert torch.autograd.gradcheck(loss, (logits,))


def test_gradient_stays_finite_when_the_support_holds_all_mass():
    logits = torch.tensor([[60.0, -60.0, -60.0]], requires_grad=True)
    support = torch.tensor([[0, 1]])
    teacher = torch.zeros(1, 3).log_softmax(-1)
    loss = reverse_kl(append_tail(logits.log_softmax(-1).gather(-1, support)), coarsen(teacher, support)).sum()
    loss.backward()
    assert torch.isfinite(logits.grad).all()
