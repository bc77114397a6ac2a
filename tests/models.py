"""Tiny random models, tokenizers and adapters on disk, for tests of anything that loads a model.

Weights are drawn with a wide spread, so that greedy answers vary with the prompt and with the adapter, and several
tokens end an answer, so that answers differ in length.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")  # of Phi-3
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = (
    "Find a sum: 3 + 4 = 7, 12 - 5 = 7, 6 * 7 = 42. The answer is 42.\n",
    "Use the numbers 3, 7 and 25 to make 46: 25 + 3 * 7 = 46\n",
    "Ein Größenvergleich: naïve café, 東京, 🙂🙃 and more.\n",
    "user assistant system question answer think number result\n",
)
SPECIAL = ("<|pad|>", "<|eos|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")


@dataclass(frozen=True)
class TinyModel:
    """Where a random model and its adapter lie."""

    model: Path
    adapter: Path


def make_tiny(
    folder: Path, architecture: str = "llama", *, seed: int = 0, rank: int = 4, **overrides: Any
) -> TinyModel:
    """Write a random model with tokenizer to folder/model and a random adapter to folder/adapter."""
    adapter_options = {
        name: overrides.pop(name) for name in ("targets", "rank_pattern", "strength") if name in overrides
    }
    model = make_model(folder / "model", architecture, seed=seed, **overrides)
    adapter = make_adapter(folder / "adapter", model, seed=seed, rank=rank, **adapter_options)
    return TinyModel(model, adapter)


def make_tokenizer(
    folder: Path, *, vocab_size: int = 320, pad: bool = True, bos: bool = False, chat_template: bool = True
) -> Path:
    """Write a byte-level BPE tokenizer; with bos, it puts <|bos|> before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|eos|>",
        bos_token="<|bos|>",
        pad_token="<|pad|>" if pad else None,
        additional_special_tokens=list(SPECIAL[3:]),
        clean_up_tokenization_spaces=False,
    )
    if chat_template:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return folder


def make_model(
    folder: Path,
    architecture: str = "llama",
    *,
    seed: int = 0,
    tokenizer: dict[str, Any] | None = None,
    eos: tuple[int, ...] = (1, 40, 50, 60, 70),
    **overrides: Any,
) -> Path:
    """Write a random model with its tokenizer; overrides go to the model's configuration."""
    import torch
    from transformers import AutoModelForCausalLM

    config = make_config(architecture, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = list(eos)
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    return make_tokenizer(folder, **({"vocab_size": config.vocab_size} | (tokenizer or {})))


def make_config(architecture: str, **overrides: Any) -> Any:
    """Return the configuration of a tiny model: width 64, two layers (four where layer kinds alternate)."""
    from transformers import AutoConfig

    common = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    special: dict[str, dict[str, Any]] = {
        "llama": {},
        "qwen2": {},
        "qwen3": {"head_dim": 24},
        "mistral": {"sliding_window": 12},
        "gemma2": {"head_dim": 16, "sliding_window": 12, "query_pre_attn_scalar": 16, "num_hidden_layers": 4},
        "gemma3": {
            "head_dim": 16,
            "sliding_window": 12,
            "query_pre_attn_scalar": 16,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "phi3": {},
        "glm4": {"head_dim": 16},
        "gpt_neox": {"num_key_value_heads": 4},
        "deepseek_v3": {
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "n_group": 1,
            "topk_group": 1,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
        "qwen2_moe": {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
        "rwkv": {"context_length": 64, "attention_hidden_size": 64},
        "recurrent_gemma": {"lru_width": 64, "attention_window_size": 16},
        "xlstm": {},
        "mamba": {"state_size": 8},
        "jamba": {"num_experts": 2},
    }
    kind = {"gemma3": "gemma3_text"}.get(architecture, architecture)
    return AutoConfig.for_model(kind, **(common | special[architecture] | overrides))


def make_adapter(
    folder: Path,
    model: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    targets: tuple[str, ...] = ATTENTION,
    rank_pattern: dict[str, int] | None = None,
    strength: float = 1.0,
) -> Path:
    """Write a random LoRA adapter of a model; strength is about the size of its update relative to unit inputs."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(targets),
        rank_pattern=rank_pattern or {},
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(base, config)
    _fill_with_noise(peft_model, np.random.default_rng(seed), strength)
    peft_model.save_pretrained(folder)
    return folder


def _fill_with_noise(peft_model: Any, generator: np.random.Generator, strength: float) -> None:
    """Give A and B random weights: a fresh LoRA has B = 0."""
    import torch

    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            scale = strength / np.sqrt(parameter.shape[1])
            noise = generator.standard_normal(tuple(parameter.shape)) * scale
            parameter.data.copy_(torch.from_numpy(noise.astype(np.float32)))


def drop_tokenizer_entry(folder: Path, *names: str) -> None:
    """Remove entries, e.g. "pad_token", from a saved tokenizer's configuration."""
    file = folder / "tokenizer_config.json"
    config = {key: value for key, value in json.loads(file.read_text()).items() if key not in names}
    file.write_text(json.dumps(config))


def append_end(folder: Path) -> None:
    """Let a saved tokenizer put its end token behind every text, as some tokenizers of base models do."""
    file = folder / "tokenizer.json"
    config = json.loads(file.read_text())
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    config["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [sequence, {"SpecialToken": {"id": "<|eos|>", "type_id": 0}}],
        "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|eos|>": {"id": "<|eos|>", "ids": [1], "tokens": ["<|eos|>"]}},
    }
    file.write_text(json.dumps(config))


def set_normalizer(folder: Path, normalizer: dict[str, Any]) -> None:
    """Let a saved tokenizer change texts before it cuts them, e.g. ``{"type": "NFC"}``."""
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "normalizer": normalizer}))
