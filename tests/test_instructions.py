"""Generated instructions: any number, by seed alone, free of conflicts and official prompts, scored by `ifeval`."""

import gzip
import json
from pathlib import Path

import pytest

from esalign.data import Source, load_examples, make_splits
from esalign.data.instruction_words import KINDS, conflict
from esalign.errors import DataError
from esalign.rewards import load_reward
from esalign.rewards.ifeval.checkers import parameters_of  # before lm-eval, which it lets fetch nothing

from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_CONFLICTS, conflict_make  # isort: skip

CONFLICTS = conflict_make(INSTRUCTION_CONFLICTS)  # kind -> kinds that cannot stand beside it, itself among them
OFFICIAL = Path(__file__).parent / "data" / "ifeval_prompts.jsonl.gz"
pytestmark = pytest.mark.filterwarnings("ignore::esalign.errors.EsalignWarning")


@pytest.fixture(scope="module")
def many():
    return load_examples("instructions", size=3000, seed=0)


def test_they_depend_on_seed_and_place_alone(many):
    assert load_examples("instructions", size=7, seed=0) == many[:7]
    assert load_examples("instructions", size=7, seed=1) != many[:7]
    assert len({example.prompt for example in many}) > 2900


def test_there_are_one_to_three_of_all_kinds_without_conflict(many):
    kinds = [example.columns["instruction_id_list"] for example in many]
    assert {len(one) for one in kinds} == {1, 2, 3}
    assert {kind for one in kinds for kind in one} == set(KINDS) == set(CONFLICTS)
    for one in kinds:
        assert len(set(one)) == len(one)
        assert not any(other in CONFLICTS[kind] for kind in one for other in one if other != kind)


def test_conflicts_are_lm_evals_and_more():
    ours = {kind: {other for other in KINDS if conflict(kind, other)} for kind in KINDS}
    assert all(CONFLICTS[kind] <= ours[kind] for kind in KINDS)


def test_no_word_is_forbidden_that_another_instruction_demands():
    forbidden = KINDS["keywords:forbidden_words"].parameters["forbidden_words"]
    demanded = [
        *KINDS["startend:end_checker"].parameters["end_phrase"],
        *KINDS["length_constraints:nth_paragraph_first_word"].parameters["first_word"],
        *KINDS["keywords:existence"].parameters["keywords"],
        *KINDS["keywords:frequency"].parameters["keyword"],
    ]
    assert not {word.strip(".?").lower() for phrase in demanded for word in phrase.split()} & set(forbidden)


def test_no_prompt_contains_one_of_the_official_set(many):
    with gzip.open(OFFICIAL, "rt", encoding="utf-8") as lines:
        official = [json.loads(line)["prompt"] for line in lines]
    prompts = "\0".join(example.prompt for example in many)
    assert len(official) == 541
    assert not [prompt for prompt in official if prompt.strip() in prompts]
    assert not {example.prompt for example in many} & set(official)


def test_every_parameter_is_named_in_the_prompt_and_read_by_the_reward(many):
    for example in many[:500]:
        for kind, kwargs in zip(example.columns["instruction_id_list"], example.columns["kwargs"], strict=True):
            assert kwargs.keys() == set(parameters_of(kind))
            for name, value in kwargs.items():
                parts = value if isinstance(value, list) else [value]
                assert name == "language" or all(str(part) in example.prompt for part in parts), (example, name)
    columns = {name: [one.columns[name] for one in many[:500]] for name in ("instruction_id_list", "kwargs")}
    values = load_reward("ifeval", unit="fraction")(
        prompts=[one.prompt for one in many[:500]], completions=["hello"] * 500, **columns
    )
    assert {0.0, 0.5, 1.0} < set(values)


def test_they_fill_splits_that_do_not_overlap():
    splits = make_splits(
        Source(source="instructions", chat=True), train_size=60, validation_size=20, test_size=20, seed=3
    )
    sizes = [len(part.examples) for part in (splits.train, splits.validation, splits.test)]
    assert sizes == [60, 20, 20]
    assert splits.train.examples[0].prompt[0]["role"] == "user"


def test_kinds_and_numbers_can_be_chosen():
    kinds = ["punctuation:no_comma", "detectable_format:title"]
    options = {"min_instructions": 2, "max_instructions": 2, "kinds": kinds}
    assert all(
        sorted(one.columns["instruction_id_list"]) == sorted(kinds)
        for one in load_examples("instructions", size=9, options=options)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_instruction": 2}, "no option 'max_instruction', did you mean 'max_instructions'"),
        ({"max_instructions": 0}, "expected 1 <= min <= max"),
        ({"min_instructions": "2"}, "expected 1 <= min <= max"),
        ({"kinds": ["punctuation:no_coma"]}, "no kind 'punctuation:no_coma', did you mean 'punctuation:no_comma'"),
        ({"kinds": [["punctuation:no_comma"]]}, "no kind"),
        ({"kinds": "punctuation:no_comma"}, "expected a list of names"),
        (
            {"min_instructions": 2, "kinds": ["startend:quotation", "detectable_format:title"]},
            "finds no 2 of the kinds",
        ),
    ],
)
def test_what_cannot_be_generated_is_refused_in_one_line(options, message):
    with pytest.raises(DataError, match=r"^'instructions'[^\n]*$") as refused:
        load_examples("instructions", size=3, options=options)
    assert message in str(refused.value)
