"""What the torch engine reads once: what all prompts of a batch begin with, and a prompt that comes several times."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from esalign_torch import TorchBackend
from models import FUSED, make_tiny

from esalign.space import SvdLora
from esalign.testing import Reference, Subject
from esalign.testing.subject import ids_of
from esalign.types import Sampling


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    tiny = make_tiny(tmp_path_factory.mktemp("llama"), "llama")
    space = SvdLora.from_pretrained(tiny.adapter)
    return Subject(partial(TorchBackend, tiny.model, space, device="cpu"), model=tiny.model, space=space)


def test_what_all_prompts_begin_with_is_read_once_for_each_candidate(llama):
    seen = []
    embeddings = llama.backend._engine.model.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda _layer, args, _output: seen.append(args[0].numel()))
    start = tuple(range(5, 45))
    try:
        llama.backend.generate(llama.candidates, [(*start, 7 + j, 9) for j in range(6)], Sampling(max_tokens=1))
        assert sum(seen) == len(llama.candidates) * (len(start) + 6 * 2)
        seen.clear()
        llama.backend.generate(
            llama.candidates, [(5, 6, 7 + j, 9, 8, 7, 6, 5, 4) for j in range(6)], Sampling(max_tokens=1)
        )
        assert sum(seen) == len(llama.candidates) * 6 * 9, "so short a start is not worth a pass of its own"
    finally:
        handle.remove()


def test_a_prompt_of_several_completions_is_read_once_for_each_candidate(llama):
    """Beside others of other lengths, and each completion is what it is alone."""
    seen, prompts = [], [(*range(5, 35 + 3 * j), 40) for j in range(3)]
    repeated, count = [prompts[j % 3] for j in range(12)], len(llama.candidates)
    sampling = Sampling(max_tokens=8, temperature=1.0, seed=4, logprob=True)
    embeddings = llama.backend._engine.model.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda _layer, args, _output: seen.append(args[0]))
    try:
        rows = llama.backend.generate(llama.candidates, repeated, sampling)
    finally:
        handle.remove()
    read = sum(ids.numel() for ids in seen if ids.shape[1] > 1)
    assert read == count * (30 + 3 * 7)  # what begins alike, then each to the longest one's length
    alone = [llama.backend.generate(llama.candidates, [p], replace(sampling, offset=j)) for j, p in enumerate(repeated)]
    llama.agrees(ids_of(rows), [[alone[j][i][0].token_ids for j in range(12)] for i in range(count)], slack=1)
    logprobs = [[(one.logprob, alone[j][i][0].logprob) for j, one in enumerate(row)] for i, row in enumerate(rows)]
    np.testing.assert_allclose(*np.array(logprobs).reshape(-1, 2).T, atol=1e-3)


def test_where_positions_depend_on_the_length_of_the_text_prompts_are_read_whole(tmp_path):
    scaling = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    longer = {"original_max_position_embeddings": 64, "rope_scaling": scaling}
    tiny = make_tiny(tmp_path, "phi3", targets=FUSED, **longer)
    space = SvdLora.from_pretrained(tiny.adapter)
    prompts = [(*range(80, 130), *range(100 + j, 130 + j)) for j in range(8)]
    candidates = np.random.default_rng(0).standard_normal((2, space.dim)) * 0.5
    rows = TorchBackend(tiny.model, space, device="cpu").generate(candidates, prompts, Sampling(max_tokens=10))
    reference = Reference(tiny.model, space)
    assert ids_of(rows) == [list(map(tuple, reference.complete(one, prompts, 10))) for one in candidates]
