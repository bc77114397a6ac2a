"""Attention of one new token reads shared keys once, and gives what transformers' `sdpa` gives."""

from typing import Any

import numpy as np
import pytest
from models import make_tiny

torch = pytest.importorskip("torch")

from esalign_torch.attention import NAME, attend  # noqa: E402  (needs torch)
from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402

from esalign.engines.loading import load_model  # noqa: E402
from esalign.registry import load_backend  # noqa: E402
from esalign.types import Sampling  # noqa: E402


class Layer(torch.nn.Module):
    num_key_value_groups = 3
    is_causal = True


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_equals_sdpa(tokens: int, padded: bool, scaling: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(5, 6, tokens, 8, generator=generator)
    key, value = torch.randn(2, 5, 2, 20, 8, generator=generator)
    mask = (torch.arange(20) >= torch.arange(5)[:, None])[:, None, None].expand(-1, -1, tokens, -1) if padded else None
    expected, _ = sdpa_attention_forward(Layer(), query, key, value, mask, scaling=scaling)
    with torch.inference_mode():
        found, _ = attend(Layer(), query, key, value, mask, scaling=scaling)
    assert found.shape == expected.shape == (5, tokens, 6, 8)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_an_engine_uses_it_and_completes_prompts_of_many_lengths_as_alone(tmp_path: Any) -> None:
    tiny = make_tiny(tmp_path, "llama", num_attention_heads=4, num_key_value_heads=2)
    loaded = load_model("model", str(tiny.model), dtype="float32", device="cpu")
    backend = load_backend("torch", model=loaded, space=None)
    assert loaded.model.config._attn_implementation == NAME
    prompts = ["2", "Find the sum of 3 and 4.", "a b c d e"]
    bare = np.zeros((1, 0))
    together = backend.generate(bare, prompts, Sampling(max_tokens=8))[0]
    alone = [backend.generate(bare, [prompt], Sampling(max_tokens=8))[0][0] for prompt in prompts]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
