"""The oracles of the trust-region solver: bound, tightness, small-budget law, exact ends, monotonicity, optimality."""

from math import inf, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esalign.distill import reverse_kl, trust_region_blend
from esalign.errors import DistillationError

DTYPES = (torch.float32, torch.float64)
BUDGETS = st.one_of(st.floats(1e-7, 30.0), st.sampled_from([1e-6, 0.001, 0.02, 0.05]))


def pair(seed, rows, vocab, *, scale=2.0, distance=1.0, dtype=torch.float64):
    """Student and teacher at a distance, shapes (rows, vocab)."""
    generator = torch.Generator().manual_seed(seed)
    student, noise = torch.randn(2, rows, vocab, generator=generator, dtype=dtype) * scale
    return student.log_softmax(-1), (student + distance * noise).log_softmax(-1)


def exact(logprobs):
    """The distribution that rounded log-probabilities stand for, in float64."""
    return logprobs.double().log_softmax(-1)


def kl(first, second):
    return reverse_kl(exact(first), exact(second))


pairs = st.builds(
    pair,
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.one_of(st.integers(2, 40), st.sampled_from([1000, 150_000])),
    scale=st.sampled_from([0.01, 1.0, 3.0, 20.0, 300.0]),
    distance=st.sampled_from([1e-3, 0.3, 1.0, 5.0]),
    dtype=st.sampled_from(DTYPES),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(pairs, BUDGETS)
def test_budget_is_kept_and_used_up_unless_the_teacher_is_within_it(models, budget):
    student, teacher = models
    blend = trust_region_blend(student, teacher, budget)
    spent = kl(blend.logprobs, student)
    rounding = 1e-13 if student.dtype == torch.float64 else 1e-6 * (budget**0.5 + student.abs().amax().item() * 1e-4)
    assert (blend.kl_student <= budget).all()
    assert (spent <= budget * (1 + 1e-5) + rounding).all()
    inner = blend.beta < 1
    assert (blend.kl_student[inner] >= budget * (1 - 2e-6) - 2e-15).all()
    assert (spent[inner] >= budget * (1 - 1e-5) - rounding).all()
    assert ((blend.beta >= 0) & (blend.beta <= 1)).all()
    assert blend.logprobs.dtype == student.dtype


@settings(max_examples=30, deadline=None)
@given(pairs, BUDGETS)
def test_blend_is_the_normalised_geometric_mixture(models, budget):
    student, teacher = models
    blend = trust_region_blend(student, teacher, budget)
    beta = blend.beta[:, None]
    expected = exact((1 - beta) * exact(student) + beta * exact(teacher))
    assert torch.allclose(blend.logprobs.exp().double(), expected.exp(), atol=2e-5, rtol=1e-3)
    assert torch.allclose(blend.logprobs.double().logsumexp(-1), torch.zeros(len(beta)).double(), atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(pairs)
def test_both_ends_are_exact(models):
    student, teacher = models
    start = trust_region_blend(student, teacher, 0.0)
    assert torch.equal(start.logprobs, student)
    assert not start.beta.any()
    assert not start.kl_student.any()
    for huge in (1e9, inf):
        end = trust_region_blend(student, teacher, huge)
        assert torch.equal(end.logprobs, teacher)
        assert (end.beta == 1).all()
        assert torch.allclose(end.kl_student, kl(teacher, student), rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(pairs, BUDGETS, BUDGETS)
def test_beta_grows_with_the_budget_and_the_teacher_comes_closer(models, one, other):
    student, teacher = models
    low, high = (trust_region_blend(student, teacher, budget) for budget in sorted((one, other)))
    assert (low.beta <= high.beta + 2e-6 * high.beta).all()
    assert (kl(high.logprobs, teacher) <= kl(low.logprobs, teacher) * (1 + 1e-4) + 1e-4).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [2, 50, 150_000])
def test_small_budget_law(dtype, vocab):
    student, teacher = pair(5, 4, vocab, dtype=dtype)
    ratio = exact(teacher) - exact(student)
    weights = exact(student).exp()
    mean = (weights * ratio).sum(-1, keepdim=True)
    variance = (weights * (ratio - mean) ** 2).sum(-1)
    for budget, tolerance in ((1e-6, 6e-3), (1e-8, 6e-4)):
        beta = trust_region_blend(student, teacher, budget).beta
        assert ((beta / (2 * budget / variance).sqrt() - 1).abs() < tolerance).all()


def test_every_row_has_its_own_budget():
    student, teacher = pair(1, 6, 30)
    budgets = torch.tensor([0.0, 0.001, 0.02, 0.3, 5.0, inf])
    together = trust_region_blend(student, teacher, budgets)
    for row, budget in enumerate(budgets.tolist()):
        alone = trust_region_blend(student[row : row + 1], teacher[row : row + 1], budget)
        assert torch.allclose(alone.beta[0], together.beta[row], rtol=1e-5)
        assert torch.allclose(alone.logprobs[0], together.logprobs[row], atol=1e-5)


@pytest.mark.parametrize("budget", [1e-3, 0.05, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_no_distribution_within_the_budget_is_closer_to_the_teacher(seed, budget):
    """Against scipy's constrained solver, which knows nothing of the exponential family."""
    optimize = pytest.importorskip("scipy.optimize")
    student, teacher = pair(seed, 1, 6)
    blend = trust_region_blend(student, teacher, budget)
    reached = float(kl(blend.logprobs, teacher))

    def divergence_to(other, logits):
        return float(reverse_kl(torch.as_tensor(logits).log_softmax(-1), other[0]))

    solutions = [
        optimize.minimize(
            lambda x: divergence_to(teacher, x),
            start,
            method="SLSQP",
            constraints={"type": "ineq", "fun": lambda x: budget - divergence_to(student, x)},
            options={"ftol": 1e-13, "maxiter": 500},
        )
        for start in (student[0].numpy(), 0.5 * (student + teacher)[0].numpy())
    ]
    feasible = [s.fun for s in solutions if divergence_to(student, s.x) <= budget * (1 + 1e-6)]
    assert feasible
    assert reached <= min(feasible) + 1e-6
    assert abs(reached - min(feasible)) < 1e-4  # the solver gets there too, so the comparison is not empty


def test_identical_distributions_are_their_own_blend():
    student, _ = pair(2, 3, 150_000, dtype=torch.float32)
    blend = trust_region_blend(student, student.clone(), 0.02)
    assert torch.equal(blend.logprobs, student)
    assert (blend.beta == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_masked_in_both_stay_masked_and_change_nothing(dtype):
    student, teacher = pair(3, 4, 40, dtype=dtype)
    plain = trust_region_blend(student, teacher, 0.02)
    hole = torch.full((4, 3), -inf, dtype=dtype)
    masked = trust_region_blend(torch.cat([student, hole], 1), torch.cat([teacher, hole], 1), 0.02)
    assert torch.allclose(masked.beta, plain.beta, rtol=1e-5)
    assert torch.allclose(masked.logprobs[:, :40], plain.logprobs, atol=1e-5)
    assert (masked.logprobs[:, 40:] == -inf).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_hot_teacher_is_followed_only_if_the_budget_pays_for_it(dtype):
    student = torch.tensor([[0.5, 0.3, 0.2]], dtype=dtype).log()
    teacher = torch.tensor([[1.0, 0.0, 0.0]], dtype=dtype).log()
    price = log(2)  # KL(one-hot || student)
    refused = trust_region_blend(student, teacher, price - 1e-3)
    assert refused.beta == 0
    assert torch.equal(refused.logprobs, student)
    followed = trust_region_blend(student, teacher, price + 1e-3)
    assert followed.beta == 1
    assert torch.equal(followed.logprobs, teacher)
    assert abs(float(followed.kl_student) - price) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logit", [-50.0, -1e3, -1e6])
def test_nearly_one_hot_teacher_is_blended_to_the_bound(dtype, logit):
    student = torch.tensor([[0.5, 0.3, 0.2]], dtype=dtype).log()
    teacher = torch.tensor([[0.0, logit, logit]], dtype=dtype).log_softmax(-1)
    blend = trust_region_blend(student, teacher, 0.02)
    assert 0 < blend.beta < 1
    assert 0.02 * (1 - 2e-6) <= float(blend.kl_student) <= 0.02


def test_teacher_that_lacks_some_tokens_is_blended_on_the_others_when_that_is_affordable():
    student = torch.tensor([[0.6, 0.39, 0.01]]).log()
    teacher = torch.tensor([[0.1, 0.9, 0.0]]).log()
    blend = trust_region_blend(student, teacher, 0.02)  # giving up the third token costs -log 0.99, about 0.01
    assert 0 < blend.beta < 1
    assert blend.logprobs[0, 2] == -inf
    assert 0.02 * (1 - 2e-6) <= float(blend.kl_student) <= 0.02
    assert abs(float(kl(blend.logprobs, student)) - 0.02) < 1e-6
    assert trust_region_blend(student, teacher, 0.009).beta == 0


def test_tokens_that_the_student_cannot_emit_are_taken_from_the_teacher():
    student = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).log()
    teacher = torch.tensor([[0.4, 0.2, 0.4], [0.4, 0.2, 0.4]]).log()
    blend = trust_region_blend(student, teacher, 100.0)
    assert torch.allclose(blend.logprobs.exp(), torch.tensor([[2 / 3, 1 / 3, 0.0], [0.4, 0.2, 0.4]]))
    assert torch.equal(blend.logprobs[1], teacher[1])
    assert (blend.beta == 1).all()


def test_disjoint_supports_leave_the_student():
    student, teacher = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.0, 1.0]]).log()
    for budget in (0.02, 1e9, inf):
        blend = trust_region_blend(student, teacher, budget)
        assert torch.equal(blend.logprobs, student)
        assert blend.beta == 0


def test_distributions_too_far_apart_for_float64_are_still_solved():
    student = torch.tensor([[0.0, -4000.0]], dtype=torch.float64).log_softmax(-1)
    teacher = student.flip(1)
    blend = trust_region_blend(student, teacher, 0.02)
    assert abs(float(blend.beta) - 0.5) < 0.01
    assert 0.02 * (1 - 2e-6) <= float(blend.kl_student) <= 0.02


def test_half_precision_input_gives_float32_output():
    student, teacher = pair(4, 2, 100, dtype=torch.float32)
    blend = trust_region_blend(student.bfloat16(), teacher.bfloat16(), 0.02)
    assert blend.logprobs.dtype == torch.float32
    assert (blend.kl_student <= 0.02).all()


def test_arguments_are_left_alone_and_no_gradient_flows():
    student, teacher = pair(6, 2, 20)
    student.requires_grad_()
    before = student.detach().clone(), teacher.clone()
    blend = trust_region_blend(student, teacher, 0.02)
    assert torch.equal(student.detach(), before[0])
    assert torch.equal(teacher, before[1])
    assert not blend.logprobs.requires_grad


def test_empty_batch_gives_an_empty_blend():
    blend = trust_region_blend(torch.zeros(0, 5), torch.zeros(0, 5), 0.02)
    assert blend.logprobs.shape == (0, 5)
    assert blend.beta.shape == (0,)


def broken(row, value):
    student, _ = pair(7, 3, 10)
    student[row, 2] = value
    return student


@pytest.mark.parametrize(
    ("student", "teacher", "budget", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), 0.1, r"\(2, 3\) and \(2, 4\)"),
        (torch.zeros(3), torch.zeros(3), 0.1, "expected the same shape"),
        (pair(0, 2, 3)[0], pair(0, 2, 3)[1], -0.1, "budget is -0.1, expected nats, 0 or more"),
        (pair(0, 2, 3)[0], pair(0, 2, 3)[1], float("nan"), "budget is nan"),
        (pair(0, 2, 3)[0], pair(0, 2, 3)[1], torch.tensor([0.1]), r"shape \(1,\), expected one number or shape \(2,\)"),
        (broken(1, float("nan")), pair(7, 3, 10)[1], 0.1, "row 1 of the student's"),
        (pair(7, 3, 10)[1], broken(2, float("nan")), 0.0, "row 2 of the teacher's"),
        (broken(1, inf), pair(7, 3, 10)[1], 0.1, "row 1 of the student's"),
        (torch.full((1, 3), -inf), pair(0, 1, 3)[1], 0.1, "nothing but -inf"),
        (torch.randn(2, 9) * 5, pair(0, 2, 9)[1], 0.1, "pass log_softmax"),
        (pair(0, 2, 9)[1], torch.randn(2, 9) * 5, 0.1, "row 0 of the teacher's.*pass log_softmax"),
    ],
)
def test_bad_input_is_refused_with_one_clear_line(student, teacher, budget, message):
    with pytest.raises(DistillationError, match=message) as caught:
        trust_region_blend(student, teacher, budget)
    assert "\n" not in str(caught.value)
