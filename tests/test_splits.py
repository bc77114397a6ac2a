"""Problems for training, validation and test, and the mini-batches that are drawn from them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esalign.data import MiniBatches, Source, canonical, make_splits, problem_key
from esalign.errors import CheckpointError, DataError
from esalign.types import Example

ROWS = [{"question": f"What is {i} + {i}?", "solution": str(2 * i), "level": i % 3} for i in range(60)]
COUNTDOWN = {"min_numbers": 3, "max_numbers": 3, "min_value": 1, "max_value": 9, "min_target": 1, "max_target": 30}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts(data):
    return [example.prompt for example in data.examples]


def test_carved_splits_share_nothing_and_use_everything(tmp_path):
    rows = ROWS + ROWS[:20] + [{**row, "question": row["question"] + "\n "} for row in ROWS[20:30]]
    source = Source(source=write_jsonl(tmp_path / "a.jsonl", rows))
    splits = make_splits(source, validation_size=10, test_size=15, seed=1)
    parts = [{canonical(prompt) for prompt in prompts(part)} for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [35, 10, 15]
    assert len(set.union(*parts)) == 60
    assert splits.duplicates == 30


def test_splits_depend_on_the_seed_and_held_out_ones_not_on_the_training_size(tmp_path):
    source = Source(source=write_jsonl(tmp_path / "a.jsonl", ROWS))
    small = make_splits(source, train_size=5, validation_size=10, test_size=15, seed=1)
    large = make_splits(source, train_size=30, validation_size=10, test_size=15, seed=1)
    other = make_splits(source, train_size=5, validation_size=10, test_size=15, seed=2)
    assert prompts(small.test) == prompts(large.test) != prompts(other.test)
    assert prompts(small.validation) == prompts(large.validation)
    assert prompts(large.train)[:5] == prompts(small.train)


def test_generated_splits_are_filled_with_problems_that_differ():
    source = Source(source="reasoning-gym:countdown", options=COUNTDOWN)
    splits = make_splits(source, train_size=300, validation_size=50, test_size=150)
    everything = [*splits.train.examples, *splits.validation.examples, *splits.test.examples]
    assert len(everything) == 500
    assert len({problem_key(example) for example in everything}) == 500
    assert splits.duplicates > 0


def test_countdown_in_other_words_and_another_order_is_the_same_problem():
    def example(prompt, numbers):
        metadata = {"source_dataset": "countdown", "numbers": numbers, "target": 10}
        return Example(prompt, {"metadata": metadata})

    assert problem_key(example("Find a way", [1, 2, 7])) == problem_key(example("Calculate", [7, 1, 2]))
    assert problem_key(example("Find a way", [1, 2, 7])) != problem_key(example("Find a way", [1, 2, 8]))


def test_a_task_that_runs_out_of_problems_says_how_many_it_has():
    options = {**COUNTDOWN, "max_value": 2, "max_target": 5}
    with pytest.raises(
        DataError, match=r"gives \d+ different problems, fewer than the 400 asked for .*widen data.options"
    ):
        make_splits(
            Source(source="reasoning-gym:countdown", options=options), train_size=300, validation_size=50, test_size=50
        )


def test_a_file_too_small_for_its_splits_says_so(tmp_path):
    source = Source(source=write_jsonl(tmp_path / "a.jsonl", ROWS))
    with pytest.raises(DataError, match="gives 60 different problems, fewer than the 61 asked for"):
        make_splits(source, validation_size=30, test_size=30)


def test_a_held_out_file_too_small_for_its_size_names_the_key(tmp_path):
    train, test = (
        Source(source=write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {i}"} for i in range(9)]))
        for name in ("train", "test")
    )
    with pytest.raises(DataError, match=r"test.jsonl' has 9 rows, fewer than data.test_size 10"):
        make_splits(train, validation_size=2, test_size=10, test=test)


def test_overlapping_problems_are_dropped_from_the_main_source_where_that_is_asked_for(tmp_path):
    rows = [{"prompt": f"{n} + 1 =", "answer": str(n + 1)} for n in range(40)]
    main, test = write_jsonl(tmp_path / "main.jsonl", rows), write_jsonl(tmp_path / "test.jsonl", rows[:5])
    sizes = {"validation_size": 8, "test_size": 5}
    splits = make_splits(Source(source=main), test=Source(source=test), overlap="drop", **sizes)
    assert {e.prompt for e in splits.test.examples} == {row["prompt"] for row in rows[:5]}
    kept = [e.prompt for data in (splits.train, splits.validation) for e in data.examples]
    assert sorted(kept) == sorted(row["prompt"] for row in rows[5:])
    [note] = [note for note in splits.notes if note.kind == "dropped"]
    assert note.text.startswith("5 of 40 rows")


def test_separate_sources_that_overlap_are_refused_with_an_example(tmp_path):
    train = Source(source=write_jsonl(tmp_path / "train.jsonl", ROWS[:40]))
    test = Source(source=write_jsonl(tmp_path / "test.jsonl", ROWS[37:]))
    with pytest.raises(
        DataError, match=r"3 problems are in both the train .*train.jsonl\) and the test .*'What is 3\d"
    ):
        make_splits(train, validation_size=0, test_size=23, test=test)


def test_separate_sources_are_taken_as_they_are(tmp_path):
    train = Source(source=write_jsonl(tmp_path / "train.jsonl", ROWS[:30]))
    test = Source(source=write_jsonl(tmp_path / "test.jsonl", ROWS[40:]))
    splits = make_splits(train, validation_size=10, test_size=20, test=test)
    assert sorted(prompts(splits.test)) == sorted(row["question"] for row in ROWS[40:])
    assert len(splits.train.examples) == 20
    assert splits.test.name.endswith("test.jsonl")


def test_canonical_text_of_messages_ignores_white_space_too():
    one = ({"role": "user", "content": "2 +  2"},)
    assert canonical(one) == canonical([{"content": "2 + 2", "role": "user"}])
    assert canonical(one) != canonical("2 + 2")


def problems(count):
    return [Example(str(index)) for index in range(count)]


@given(count=st.integers(1, 40), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8), seed=st.integers(0, 9))
@settings(deadline=None)
def test_mini_batches_show_every_problem_equally_often(count, sizes, seed):
    batches = MiniBatches(problems(count), seed=seed)
    drawn = []
    for size in sizes:
        batch = [example.prompt for example in batches.next(size)]
        assert len(batch) == size
        assert len(set(batch)) == min(size, count)
        drawn += batch
    times = [drawn.count(str(index)) for index in range(count)]
    assert max(times) - min(times) <= 1


def test_resumed_mini_batches_equal_uninterrupted_ones():
    straight, broken = (MiniBatches(problems(23), seed=4) for _ in range(2))
    for _ in range(5):
        straight.next(7)
        broken.next(7)
    resumed = MiniBatches(problems(23), seed=0)
    resumed.load_state_dict(broken.state_dict())
    assert [straight.next(7) for _ in range(20)] == [resumed.next(7) for _ in range(20)]


def test_mini_batches_hand_out_no_live_state():
    batches, reference = (MiniBatches(problems(10), seed=0) for _ in range(2))
    batches.state_dict()["waiting"][:] = 0
    assert batches.next(10) == reference.next(10)


def test_mini_batches_refuse_the_state_of_other_data_and_no_data():
    state = MiniBatches(problems(5), seed=0).state_dict()
    with pytest.raises(CheckpointError, match="drew from 5 training problems, now there are 6"):
        MiniBatches(problems(6), seed=0).load_state_dict(state)
    with pytest.raises(DataError, match="no problems"):
        MiniBatches([], seed=0)
    with pytest.raises(DataError, match="expected at least 1"):
        MiniBatches(problems(3), seed=0).next(0)


def test_mini_batch_seeds_differ():
    orders = {tuple(e.prompt for e in MiniBatches(problems(20), seed=seed).next(20)) for seed in range(8)}
    assert len(orders) == 8
