"""The student of a distillation is judged by an ordinary engine: it holds the contract, and sees what was learnt."""

import numpy as np
import pytest
import torch
from models import make_tiny

from esalign.distill.forced import completion_logits
from esalign.distill.models import make_judge
from esalign.distill.sources import set_student
from esalign.distill.vocabulary import SharedVocabulary
from esalign.engines.loading import load_model
from esalign.space import SvdLora
from esalign.testing import BACKEND_CLAIMS, Subject
from esalign.types import Sampling, as_candidates


class Learning:
    """The judge of one student that learns: each candidate is written into its adapter before it is judged."""

    def __init__(self, model, adapter, space):
        self.student = load_model("student", str(model), str(adapter), dtype="float32", device="cpu")
        self.space = space
        vocabulary = SharedVocabulary.of_one(self.student.rows, self.student.ends)
        self.judge = make_judge(self.student, vocabulary, sequences=64)
        self.encode, self.close = self.judge.encode, self.judge.close

    def learn(self, candidates):
        for number, candidate in enumerate(as_candidates(candidates, self.space.dim)):
            set_student(self.student.model, self.space, candidate)
            yield number, np.empty((1, 0))

    def generate(self, candidates, prompts, sampling, on_completion=None):
        rows = []
        for i, nothing in self.learn(candidates):
            tell = None if on_completion is None else (lambda _, j, completion, i=i: on_completion(i, j, completion))
            rows += self.judge.generate(nothing, prompts, sampling, tell)
        return rows

    def score(self, candidates, sequences, support=None):
        return [self.judge.score(nothing, sequences, support)[0] for _, nothing in self.learn(candidates)]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    tiny = make_tiny(tmp_path_factory.mktemp("student"))
    space = SvdLora.from_pretrained(tiny.adapter)
    return Subject(lambda: Learning(tiny.model, tiny.adapter, space), model=tiny.model, space=space)


# A student learns for one caller at a time.
ONE_CALLER = [claim for claim in BACKEND_CLAIMS if claim.__name__ != "completes_for_several_threads"]


@pytest.mark.parametrize("claim", ONE_CALLER, ids=lambda claim: claim.__name__)
def test_the_judge_of_a_student_that_learns_holds_the_contract(subject, claim):
    claim(subject)


def test_judging_leaves_the_student_able_to_learn(subject):
    """No hook, no inference tensor, and no other number stays behind."""
    learning = subject.make()
    model = learning.student.model
    sequences = [((3, 4, 5), (6, 7))]
    before = completion_logits(model, sequences)
    learning.judge.generate(np.empty((1, 0)), subject.prompts, Sampling(max_tokens=3, temperature=1.0))
    learning.judge.score(np.empty((1, 0)), sequences)
    weight = next(p for name, p in model.named_parameters() if "lora_B" in name)
    weight.requires_grad_()
    after = completion_logits(model, sequences)
    assert torch.equal(before, after)
    after.logsumexp(dim=-1).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_the_judge_ends_where_either_model_ends(subject):
    [row] = subject.backend.generate(subject.candidates[1:2], subject.prompts, subject.sampling())
    longest = max(row, key=lambda completion: len(completion.token_ids))
    foreign = longest.token_ids[len(longest.token_ids) // 2]
    student = load_model("student", str(subject.model), dtype="float32", device="cpu")
    vocabulary = SharedVocabulary.of_one(student.rows, [*student.ends, foreign])
    judge = make_judge(student, vocabulary, sequences=64)
    for completion in judge.generate(np.empty((1, 0)), subject.prompts, subject.sampling(temperature=1.0))[0]:
        assert foreign not in completion.token_ids[:-1]
        assert completion.finish_reason == ("stop" if completion.token_ids[-1] in vocabulary.ends else "length")
