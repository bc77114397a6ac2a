"""Writing a Hugging Face tokenizer's vocabulary into a GGUF file."""

import json
import re
from pathlib import Path
from typing import Any

from esalign.errors import BackendError
from esalign_llama_cpp.config import ModelConfig, read_json

NORMALIZER = "tokenizer.esalign.normalizer"
"""Key of our own: what the tokenizer does to texts first, as ``tokenizer.json`` has it."""

BLANK = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"  # how byte-level BPE writes a blank
BLANKS = ("Prepend", "Replace")
"""Steps that write blanks as SentencePiece does, which llama.cpp does by itself."""
UNMERGED = -1e9
CUTTERS = {
    "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|": "llama-bpe",
    "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|": "qwen2",
}
"""GGUF's names of ways to cut up text before merging, by a stretch of the regular expression."""


_BYTE = re.compile("<0x[0-9A-F]{2}>")


def add_vocabulary(writer: Any, folder: Path, config: ModelConfig) -> None:
    """Write tokens, merges or scores, special ids and chat template.

    Raises:
        BackendError: the tokenizer is no BPE, or is missing.
    """
    file = folder / "tokenizer.json"
    tokenizer = read_json(file)
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        raise BackendError(
            f"'{file}' is a tokenizer of type {model.get('type')!r}; esalign converts BPE: "
            "convert the model with llama.cpp's convert_hf_to_gguf.py"
        )
    tokens, types = _list_tokens(tokenizer, config.vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    steps = _steps(tokenizer.get("normalizer"), "normalizers")
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_score_tokens(tokens, model))
        writer.add_add_space_prefix(_adds_blank(tokenizer))
        steps = [step for step in steps if step.get("type") not in BLANKS]
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name_of_cutter(tokenizer))
        writer.add_token_merges([_write_merge(merge) for merge in model.get("merges", ())])
    if steps:
        writer.add_string(NORMALIZER, json.dumps({"type": "Sequence", "normalizers": steps}))
    _add_special(writer, folder, tokens, config)


def _steps(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Return the steps of a sequence, or the only one."""
    return [] if not step else list(step[key]) if step.get("type") == "Sequence" else [step]


def _score_tokens(tokens: list[str], model: dict[str, Any]) -> list[float]:
    """Return what SentencePiece's way of merging goes by: the earlier a merge, the higher the score of its result."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", ()))
    scores: dict[str, float] = {}
    for number, pair in enumerate(pairs):
        scores.setdefault("".join(pair), -float(number))
    return [scores.get(token, UNMERGED) for token in tokens]


def _adds_blank(tokenizer: dict[str, Any]) -> bool:
    """Tell whether a text gets a blank before it."""
    steps = _steps(tokenizer.get("normalizer"), "normalizers")
    before = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    return any(step.get("type") == "Prepend" for step in steps) or any(
        step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in before
    )


def name_of_cutter(tokenizer: dict[str, Any]) -> str:
    """Return GGUF's name of how a tokenizer cuts up text, ``default`` where it has none."""
    text = json.dumps(tokenizer.get("pre_tokenizer"), ensure_ascii=False).replace("\\\\", "\\")
    for stretch, name in CUTTERS.items():
        if stretch in text:
            return name
    steps = tokenizer.get("pre_tokenizer") or {}
    return "gpt-2" if steps.get("type") == "ByteLevel" and steps.get("use_regex", True) else "default"


def _list_tokens(tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return text and type of every id; ids that no token has are padding."""
    from gguf import TokenType

    in_bytes = bool(tokenizer["model"].get("byte_fallback"))
    texts = {number: text for text, number in tokenizer["model"]["vocab"].items()}
    added = {entry["id"]: entry for entry in tokenizer.get("added_tokens", ())}
    highest = max((*texts, *added))
    if highest >= size:
        raise BackendError(f"the tokenizer has ids up to {highest}, but the model's vocabulary has {size}")
    tokens, types = [], []
    for number in range(size):
        if number in added:
            tokens.append(added[number]["content"])
            types.append(int(TokenType.CONTROL if added[number].get("special") else TokenType.USER_DEFINED))
        else:
            text = texts.get(number, f"[PAD{number}]")
            kind = TokenType.NORMAL if number in texts else TokenType.UNUSED
            tokens.append(text)
            types.append(int(TokenType.BYTE if in_bytes and _BYTE.fullmatch(text) else kind))
    return tokens, types


def _write_merge(merge: str | list[str]) -> str:
    """Return a merge as GGUF has it: two parts, divided by a blank."""
    return merge if isinstance(merge, str) else " ".join(part.replace(" ", BLANK) for part in merge)


def _add_special(writer: Any, folder: Path, tokens: list[str], config: ModelConfig) -> None:
    """Write the ids with a meaning, and the chat template."""
    file = folder / "tokenizer_config.json"
    settings = read_json(file) if file.is_file() else {}
    for role, add in (("bos", writer.add_bos_token_id), ("pad", writer.add_pad_token_id)):
        text = _content(settings.get(f"{role}_token"))
        if text in tokens:
            add(tokens.index(text))
    eos = _content(settings.get("eos_token"))
    ends = list(config.ends) or ([tokens.index(eos)] if eos in tokens else [])
    for end, add in zip(
        ends, (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), strict=False
    ):
        add(end)
    writer.add_add_bos_token(_adds_bos(folder, settings))
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else settings.get("chat_template")
    if isinstance(text, str):
        writer.add_chat_template(text)


def _content(entry: Any) -> str | None:
    """Return the text of a special token, which is written plainly or with its settings."""
    return entry.get("content") if isinstance(entry, dict) else entry


def _adds_bos(folder: Path, settings: dict[str, Any]) -> bool:
    """Tell whether the tokenizer puts the bos token before every text."""
    for step in _steps(read_json(folder / "tokenizer.json").get("post_processor"), "processors"):
        single = step.get("single") or []
        if step.get("type") == "TemplateProcessing" and single and "SpecialToken" in single[0]:
            return bool(single[0]["SpecialToken"]["id"] == _content(settings.get("bos_token")))
    return False
