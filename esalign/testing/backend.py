"""The contract of `esalign.protocols.Backend`, one claim a function.

An engine's whole test is::

    @pytest.fixture(scope="module")
    def subject():
        space = SvdLora.from_pretrained("adapter/")
        subject = Subject(partial(MyBackend, "model/", space), model="model/", space=space)
        yield subject
        subject.backend.close()

    @pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
    def test_my_engine(subject, claim):
        claim(subject)
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from esalign.errors import BackendError
from esalign.testing.refusal import expect_refusal
from esalign.testing.subject import Subject, ids_of
from esalign.types import Array, Completion, Message, Prompt

DRAWS = 256
TIE = 1e-5  # nats: what float32 rounding may do to a logit


def completes_as_the_folded_adapter_does(subject: Subject) -> None:
    """Greedy tokens equal those of transformers + peft with each candidate's adapter, but for exact ties of logits."""
    rows = ids_of(subject.greedy)
    for i, line in enumerate(subject.expected):
        for j, completion in enumerate(line):
            if rows[i][j] != tuple(completion) and _parts_at_a_tie(subject, i, j):
                rows[i][j] = tuple(completion)
    subject.agrees(rows, subject.expected)
    distinct = {tuple(map(tuple, row)) for row in subject.expected}
    assert len(distinct) > 1, "all candidates complete alike, so this shows nothing: raise the subject's spread"


def _parts_at_a_tie(subject: Subject, i: int, j: int) -> bool:
    """Tell whether a completion leaves the reference's where two tokens are equally likely, up to rounding."""
    got, expected = subject.greedy[i][j].token_ids, subject.expected[i][j]
    at = next((at for at, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None)
    if at is None:
        return False
    prompt = subject.backend.encode(subject.prompts[j])
    logs = subject.reference.log_probabilities(subject.candidates[i], prompt, expected)[at]
    return bool(logs[expected[at]] - logs[got[at]] <= TIE)


def ends_completions_rightly(subject: Subject) -> None:
    """Ids, text and finish reason fit each other: a closing token is kept among the ids and not in the text."""
    for row in subject.greedy:
        for completion in row:
            ids = list(completion.token_ids)
            ended = ids[-1] in subject.reference.ends
            assert 1 <= len(ids) <= subject.max_tokens
            assert not subject.reference.ends.intersection(ids[:-1]), "the completion goes on behind its end"
            assert completion.finish_reason == ("stop" if ended else "length")
            assert ended or len(ids) == subject.max_tokens, "the completion ends without a reason"
            text = subject.reference.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
            assert completion.text == text


def keeps_to_max_tokens(subject: Subject) -> None:
    """A limit of one token gives the first token of the longer completion."""
    rows = subject.backend.generate(subject.candidates, subject.prompts, subject.sampling(max_tokens=1))
    subject.agrees(ids_of(rows), [[completion.token_ids[:1] for completion in row] for row in subject.greedy], slack=1)


def reports_each_completion_once(subject: Subject) -> None:
    """``on_completion`` gets each (candidate, prompt) once, with the completion that is returned."""
    calls: list[tuple[int, int, Completion]] = []
    rows = subject.backend.generate(
        subject.candidates, subject.prompts, subject.sampling(), lambda *call: calls.append(call)
    )
    expected = [(i, j, completion) for i, row in enumerate(rows) for j, completion in enumerate(row)]
    assert sorted(calls, key=lambda call: call[:2]) == expected


def repeats_itself(subject: Subject) -> None:
    """The same call gives the same completions, greedy and sampled; another seed gives others."""
    candidates, prompts = subject.candidates[:3], subject.prompts
    again = subject.backend.generate(subject.candidates, prompts, subject.sampling())
    subject.agrees(ids_of(again), ids_of(subject.greedy))
    once = subject.sample(candidates, prompts)
    subject.agrees(subject.sample(candidates, prompts), once)
    assert subject.sample(candidates, prompts, seed=6) != once, "the seed changes nothing"


def draws_alike_for_all_candidates(subject: Subject) -> None:
    """Equal candidates draw equal completions; a prompt that is repeated draws another completion each time."""
    twins = np.stack([subject.candidates[1], subject.candidates[2], subject.candidates[1]])
    rows = subject.sample(twins, [subject.prompts[0]] * 8)
    subject.agrees([rows[2]], [rows[0]], slack=1)
    assert len(set(rows[0])) > 1, "all samples of a prompt are equal"


def draws_alike_in_a_part_of_the_prompts(subject: Subject) -> None:
    """A call for the prompts from the fourth on, with offset 3, draws as the call for all of them."""
    sampling = subject.sampling(temperature=1.0, seed=5)
    rows = subject.sample(subject.candidates[:2], [subject.prompts[0]] * 8)
    part = subject.backend.generate(subject.candidates[:2], [subject.prompts[0]] * 4, replace(sampling, offset=3))
    subject.agrees(ids_of(part), [row[3:7] for row in rows], slack=1)


def completes_greedily_and_draws_in_one_call(subject: Subject) -> None:
    """The first prompts are completed as by a greedy call, the others as by one that draws all, whatever is set."""
    candidates, prompts = subject.candidates[:3], [subject.prompts[j % 4] for j in range(8)]
    text = max((completion.text for row in subject.greedy for completion in row), key=len)
    for settings in ({}, {"top_k": 20, "top_p": 0.95, "stop": (_middle(text),)}):
        greedily = subject.sampling(**{key: value for key, value in settings.items() if key == "stop"})
        sampling = subject.sampling(temperature=1.0, seed=5, **settings)
        greedy, drawn = (ids_of(subject.backend.generate(candidates, prompts, each)) for each in (greedily, sampling))
        differ = np.array([[a != b for a, b in zip(*rows, strict=True)] for rows in zip(greedy, drawn, strict=True)])
        assert min(differ[:, :4].sum(), differ[:, 4:].sum()) > 2, "greedy and drawn completions hardly differ"
        expected = [a[:4] + b[4:] for a, b in zip(greedy, drawn, strict=True)]
        mixed = subject.backend.generate(candidates, prompts, replace(sampling, greedy=4))
        subject.agrees(ids_of(mixed), expected, slack=1)
        part = subject.backend.generate(candidates, prompts[2:], replace(sampling, greedy=4, offset=2))
        subject.agrees(ids_of(part), [row[2:] for row in expected], slack=1)


def completes_whatever_the_company(subject: Subject) -> None:
    """A candidate completes alone as it does among others, sampled too, and a prompt as it does among other prompts."""
    if not subject.batch_invariant:
        return
    alone = subject.backend.generate(subject.candidates[2:3], subject.prompts, subject.sampling())
    subject.agrees(ids_of(alone), ids_of(subject.greedy[2:3]), slack=1)
    few = subject.backend.generate(subject.candidates, subject.prompts[3:5], subject.sampling())
    subject.agrees(ids_of(few), [row[3:5] for row in ids_of(subject.greedy)], slack=1)
    together = subject.sample(subject.candidates, subject.prompts)
    subject.agrees(subject.sample(subject.candidates[2:3], subject.prompts), together[2:3], slack=1)
    subject.agrees(subject.sample(subject.candidates, subject.prompts[:2]), [row[:2] for row in together], slack=1)


def completes_what_begins_alike_as_the_folded_adapter_does(subject: Subject) -> None:
    """Prompts with a long start in common, one of them nothing but that start, are completed as the reference does."""
    start = max((subject.backend.encode(prompt) for prompt in subject.prompts), key=len)
    prompts = [(*start, *subject.backend.encode(prompt)[: 2 * j]) for j, prompt in enumerate(subject.prompts[:8])]
    candidates = subject.candidates[1:3]
    expected = [subject.reference.complete(candidate, prompts, subject.max_tokens) for candidate in candidates]
    subject.agrees(ids_of(subject.backend.generate(candidates, prompts, subject.sampling())), expected, slack=1)
    alone = subject.backend.generate(candidates, [prompts[1]] * 8, subject.sampling())  # so of one length
    subject.agrees(ids_of(alone), [[row[1]] * 8 for row in expected], slack=1)


def draws_from_the_model(subject: Subject) -> None:
    """Sampled tokens are as probable, on average, as the reference says (five standard errors), at two temperatures."""
    prompt = subject.backend.encode(subject.prompts[0])
    logs = subject.reference.log_probabilities(subject.candidates[1], prompt, [0])[0].astype(np.float64)
    for temperature in (1.0, 1.7):
        tempered = logs / temperature
        tempered -= np.logaddexp.reduce(tempered)
        mean, square = (float((np.exp(tempered) * tempered**power).sum()) for power in (1, 2))
        sampling = subject.sampling(max_tokens=1, temperature=temperature, seed=1)
        rows = subject.backend.generate(subject.candidates[1:2], [prompt] * DRAWS, sampling)
        seen = float(np.mean([tempered[completion.token_ids[0]] for completion in rows[0]]))
        assert abs(seen - mean) < 5 * np.sqrt((square - mean**2) / DRAWS) + subject.score_tolerance


def draws_within_top_k_and_top_p(subject: Subject) -> None:
    """One token to choose from is greedy; top_p draws from the fewest tokens that reach it, and from more than one."""
    rows = subject.backend.generate(subject.candidates, subject.prompts, subject.sampling(temperature=2.0, top_k=1))
    subject.agrees(ids_of(rows), ids_of(subject.greedy), slack=1)
    prompt = subject.backend.encode(subject.prompts[0])
    logs = subject.reference.log_probabilities(subject.candidates[1], prompt, [0])[0]
    order = np.argsort(-logs)
    before = np.cumsum(np.exp(logs[order])) - np.exp(logs[order])
    for changes, allowed in (
        ({"top_p": 0.5}, set(order[before < 0.5 + 10 * subject.score_tolerance].tolist())),
        ({"top_k": 3}, set(order[logs[order] > logs[order[2]] - 10 * subject.score_tolerance].tolist())),
    ):
        sampling = subject.sampling(max_tokens=1, temperature=1.0, **changes)
        drawn = {
            completion.token_ids[0]
            for completion in subject.backend.generate(subject.candidates[1:2], [prompt] * DRAWS, sampling)[0]
        }
        assert drawn <= allowed, f"{changes} drew tokens {sorted(drawn - allowed)}"
        assert len(drawn) == len(allowed) or len(drawn) > 2, f"{changes} drew {len(drawn)} of {len(allowed)} tokens"


def stops_at_stop_strings(subject: Subject) -> None:
    """A stop string ends the completion; the text ends before it, and the ids are those that were generated."""
    longest = max(subject.greedy[1], key=lambda completion: len(completion.text))
    stop = _middle(longest.text)
    rows = subject.backend.generate(
        subject.candidates[1:2], subject.prompts, subject.sampling(stop=(stop, "never in any text"))
    )
    stopped = 0
    for completion, whole in zip(rows[0], subject.greedy[1], strict=True):
        if stop not in whole.text:
            assert completion == whole, "a completion without the stop string has changed"
            continue
        stopped += 1
        assert completion.text == whole.text[: whole.text.index(stop)]
        assert completion.finish_reason == "stop"
        assert completion.token_ids == whole.token_ids[: len(completion.token_ids)]
    assert stopped


def _middle(text: str) -> str:
    """Return two to four characters from the middle of a text, the first of them blank-free if there are such."""
    whole = [at for at in range(len(text) // 3, len(text) - 2) if "\N{REPLACEMENT CHARACTER}" not in text[at : at + 3]]
    assert whole, f"no stop string can be made of {text!r}: give the subject a longer max_tokens"
    return text[whole[0] : whole[0] + 3]


def takes_every_kind_of_prompt(subject: Subject) -> None:
    """Text, ids and chats may be mixed; ids are fed as they are, chats by the tokenizer's template."""
    text = subject.prompts[2]
    ids = subject.backend.encode(text)
    assert subject.backend.encode(ids) == ids == subject.backend.encode(list(ids))
    prompts: list[Prompt] = [text, list(ids), subject.prompts[3]]
    if subject.chat:
        chat: list[Message] = [{"role": "user", "content": text}]
        rendered = subject.reference.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        expected = subject.reference.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert subject.backend.encode(chat) == tuple(expected)
        prompts.append(chat)
    rows = ids_of(subject.backend.generate(subject.candidates[:2], prompts, subject.sampling()))
    subject.agrees([row[1:2] for row in rows], [row[:1] for row in rows])
    subject.agrees([row[:1] for row in rows], [row[2:3] for row in ids_of(subject.greedy[:2])])


def completes_nothing_without_prompts(subject: Subject) -> None:
    """No prompts give empty rows, no sequences give empty scores."""
    assert subject.backend.generate(subject.candidates[:2], [], subject.sampling()) == [[], []]
    assert subject.backend.score(subject.candidates[:2], []) == [[], []]


def scores_as_the_folded_adapter_does(subject: Subject) -> None:
    """``score`` gives the reference's log-probabilities of given completions, and of any other tokens as support.

    Some prompts come with one completion, some with two.
    """
    prompts = [subject.backend.encode(prompt) for prompt in subject.prompts]
    sequences = list(zip(prompts, subject.expected[0], strict=True))
    sequences += list(zip(prompts, subject.expected[1], strict=True))[::2]
    candidates = subject.candidates[:3]
    rng = np.random.default_rng(1)
    support = [rng.integers(0, subject.reference.vocab, size=(len(completion), 5)) for _, completion in sequences]
    rows = subject.backend.score(candidates, sequences)
    wide = subject.backend.score(candidates, sequences, support=support)
    for i, candidate in enumerate(candidates):
        for j, (prompt, completion) in enumerate(sequences):
            table = subject.reference.log_probabilities(candidate, prompt, completion)
            _close(rows[i][j], table[np.arange(len(completion)), completion], subject)
            _close(wide[i][j], np.take_along_axis(table, support[j], axis=1), subject)


def _close(got: Array, expected: Array, subject: Subject) -> None:
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    worst = float(np.abs(got - expected).max(initial=0.0))
    assert worst <= subject.score_tolerance, f"a log-probability is {worst:.2g} nats off"


def scores_what_it_generates(subject: Subject) -> None:
    """A greedy token is the likeliest of a support that holds it, in the engine's own scores."""
    prompts = [subject.backend.encode(prompt) for prompt in subject.prompts]
    completions = [completion.token_ids for completion in subject.greedy[1]]
    others = np.arange(min(64, subject.reference.vocab))
    support = [np.column_stack([ids, np.tile(others, (len(ids), 1))]) for ids in completions]
    rows = subject.backend.score(subject.candidates[1:2], list(zip(prompts, completions, strict=True)), support=support)
    for table in rows[0]:
        assert (table[:, 0] >= table.max(axis=1) - 2 * subject.score_tolerance).all()


def says_how_likely_its_completions_are(subject: Subject) -> None:
    """If asked, each completion comes with the sum of its tokens' scores, drawn at another temperature or not."""
    backend, candidates, prompts = subject.backend, subject.candidates[1:3], [subject.prompts[j % 4] for j in range(8)]
    text = max((completion.text for row in subject.greedy[1:3] for completion in row), key=len)
    sampling = subject.sampling(temperature=0.5, top_k=20, greedy=4, seed=5, stop=(_middle(text),))
    rows = backend.generate(candidates, prompts, replace(sampling, logprob=True))
    bound = 2 * subject.score_tolerance  # of a token: generating and scoring may each be off by as much
    for candidate, row in zip(candidates, rows, strict=True):
        sequences = [(backend.encode(one), written.token_ids) for one, written in zip(prompts, row, strict=True)]
        for written, scores in zip(row, backend.score(candidate[None], sequences)[0], strict=True):
            assert written.logprob is not None, "a log-probability was asked for"
            off = abs(written.logprob - float(scores.sum(dtype=np.float64)))
            assert off <= bound * len(scores), f"the log-probability of {len(scores)} tokens is {off:.2g} nats off"
    assert all(one.logprob is None for row in backend.generate(candidates, prompts, sampling) for one in row)


def refuses_what_it_cannot_do(subject: Subject) -> None:
    """Wrong shapes are ValueErrors, prompts that cannot be fed BackendErrors, each in one line; the engine lives on."""
    good, prompt, sampling = subject.candidates[:1], subject.prompts[0], subject.sampling()
    generate, score, dim = subject.backend.generate, subject.backend.score, subject.space.dim
    for candidates in (np.zeros((1, dim + 1)), np.zeros(dim), np.zeros((0, dim)), np.full((1, dim), np.nan)):
        expect_refusal(ValueError, generate, candidates, [prompt], sampling)
        expect_refusal(ValueError, score, candidates, [((3, 4), (5,))])
    long = [3] * (subject.reference.context + 1)
    for bad in ([], long, [-1], [10**7]):
        expect_refusal(BackendError, generate, good, [prompt, bad], sampling)
    for prompts in (prompt, {"role": "user", "content": prompt}, [{"role": "user", "content": prompt}], [3, 4]):
        expect_refusal(BackendError, generate, good, prompts, sampling)  # one prompt is no list of prompts
    for pair in (([], [3]), (long, [3]), ([3], [10**7]), "ab", (), 3, ("ab", [3], [3])):
        expect_refusal(BackendError, score, good, [pair])
    after = subject.backend.generate(subject.candidates, subject.prompts, subject.sampling())
    subject.agrees(ids_of(after), ids_of(subject.greedy))


def completes_for_several_threads(subject: Subject) -> None:
    """Threads that call one engine at the same time get what each would get alone."""

    def work(i: int) -> list[list[tuple[int, ...]]]:
        subject.backend.score(subject.candidates[i : i + 1], [((3, 4), (5, 6))])
        return ids_of(subject.backend.generate(subject.candidates[i : i + 1], subject.prompts[:4], subject.sampling()))

    with ThreadPoolExecutor(4) as threads:
        together = list(itertools.chain(*threads.map(work, range(4))))
    subject.agrees(together, [row[:4] for row in ids_of(subject.greedy[:4])])


def leaves_its_arguments_alone(subject: Subject) -> None:
    """Candidates are read, not written; float32 and read-only arrays are fine."""
    frozen = subject.candidates.astype(np.float32)
    frozen.setflags(write=False)
    before = frozen.copy()
    subject.backend.generate(frozen, subject.prompts[:2], subject.sampling(max_tokens=2))
    subject.backend.score(frozen, [((3, 4), (5, 6))])
    assert np.array_equal(frozen, before)


def closes_twice(subject: Subject) -> None:
    """Closing twice is harmless."""
    backend = subject.make()
    backend.close()
    backend.close()


CLAIMS: tuple[Callable[[Subject], None], ...] = (
    completes_as_the_folded_adapter_does,
    ends_completions_rightly,
    keeps_to_max_tokens,
    reports_each_completion_once,
    repeats_itself,
    draws_alike_for_all_candidates,
    draws_alike_in_a_part_of_the_prompts,
    completes_greedily_and_draws_in_one_call,
    completes_whatever_the_company,
    completes_what_begins_alike_as_the_folded_adapter_does,
    draws_from_the_model,
    draws_within_top_k_and_top_p,
    stops_at_stop_strings,
    takes_every_kind_of_prompt,
    completes_nothing_without_prompts,
    scores_as_the_folded_adapter_does,
    scores_what_it_generates,
    says_how_likely_its_completions_are,
    refuses_what_it_cannot_do,
    completes_for_several_threads,
    leaves_its_arguments_alone,
    closes_twice,
)
