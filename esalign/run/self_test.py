"""A test of an engine at its start: does it compute this model as transformers does?"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from esalign.assets import model_path
from esalign.config.sections import BackendSection
from esalign.engines.checks import EXACT, ROUNDED
from esalign.errors import BackendError, EsalignWarning
from esalign.protocols import Backend, Space
from esalign.run.apart import call_apart
from esalign.run.inputs import find_files
from esalign.run.reference import score
from esalign.types import Array, Example, Sampling

PROMPTS, TOKENS = 2, 16  # the shortest of the first problems; tokens of each completion, and of each prompt
SHORTEST_OF = 32
WEIGHTS = (".safetensors", ".bin")


def self_test(
    backend: Backend,
    config: BackendSection,
    *,
    model: str,
    space: Space | None,
    candidate: Array,
    examples: Sequence[Example],
) -> None:
    """Compare an engine's log-probabilities of a few tokens with those of transformers and peft.

    They are loaded in a process of their own, on the CPU. It costs the time to import and load them, 10 s and more, and
    the memory of a second copy of the model, so it is left out for a model above ``config.self_test`` GB; and where
    transformers computes something else, as with quantised weights. A difference that rounding does not explain is
    warned of.

    Args:
        backend: the engine.
        config: its section.
        model: the base model.
        space: the search space; None for the bare model.
        candidate: the search vector to compare at, shape (dim,).
        examples: problems, whose shortest prompts are completed and scored.

    Raises:
        BackendError: there is such a difference in float32.
    """
    path = model_path(model)
    size = sum(file.stat().st_size for file in find_files(path) if file.suffix in WEIGHTS) / 1e9
    if not 0 < size <= config.self_test or config.options.get("quantization"):
        return
    prompts = sorted((backend.encode(example.prompt) for example in examples[:SHORTEST_OF]), key=len)[:PROMPTS]
    try:
        [completions] = backend.generate(candidate[None], prompts, Sampling(max_tokens=TOKENS))
        sequences = [(ids, one.token_ids) for ids, one in zip(prompts, completions, strict=True)]
        # The prompts' own tokens are likely and unlikely ones, which tell more than a model that repeats itself.
        sequences += [(ids[:1], ids[1 : TOKENS + 1]) for ids in prompts if len(ids) > 1]
        [scores] = backend.score(candidate[None], sequences)
        found = _ask_transformers(path, space, candidate, sequences, config.dtype)
    except BackendError as error:
        _warn(f"the engine was not compared with transformers: {error}")
        return
    if found["obstacle"]:
        return
    given, likeliest = (np.concatenate(found[key]) for key in ("given", "likeliest"))
    greedy = sum(len(one.token_ids) for one in completions)
    scored, chosen = np.abs(np.concatenate(scores) - given).mean(), (likeliest - given)[:greedy].mean()
    exact = config.dtype == "float32"
    if max(scored, chosen) <= (EXACT if exact else ROUNDED):
        return
    message = (
        f"backend {config.name!r} computes model '{model}' otherwise than transformers: its log-probabilities of "
        f"{len(given)} tokens are off by {scored:.2g} nats on average, and the tokens that it takes for the likeliest "
        f"are less likely by {chosen:.2g}"
    )
    if exact:
        raise BackendError(f"{message}: use another backend, or go on regardless with backend.self_test=0")
    _warn(f"{message}, more than rounding does: compare with backend.dtype=float32, or use another backend")


def _warn(text: str) -> None:
    warnings.warn(text, EsalignWarning, stacklevel=3)


def _ask_transformers(path: str, space: Space | None, candidate: Array, sequences: Any, dtype: str) -> Any:
    with TemporaryDirectory() as folder:
        adapter = str(space.save_pretrained(candidate, Path(folder))) if space is not None else None
        return call_apart(score, model=path, adapter=adapter, sequences=sequences, dtype=dtype)
