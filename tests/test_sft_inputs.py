"""The warm start takes what TRL takes, adapts the model's own layers, and says what it left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from models import make_model
from test_data import write_jsonl

from esalign.commands.sft import warm_start
from esalign.config.sft import SftConfig, SftData
from esalign.engines.loading import load_tokenizer
from esalign.errors import AdapterError, DataError
from esalign.sft.demonstrations import (
    Demonstration,
    load_demonstrations,
    read_demonstrations,
    tokenize,
)
from esalign.sft.targets import choose_targets
from esalign.types import Example

pytest.importorskip("trl")

USER, ASSISTANT = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def read(folder: Path, *rows: dict[str, Any], **keys: Any) -> list[tuple[Any, str]]:
    data = SftData(source=write_jsonl(folder / "a.jsonl", list(rows)), **keys)
    shown = read_demonstrations(load_demonstrations(data, seed=0).examples, data.answer)
    return [(demonstration.prompt, demonstration.answer) for demonstration in shown]


TRL_ROWS = {
    "messages": ({"messages": [USER, ASSISTANT]}, ([USER], "4")),
    "messages of several turns": (
        {"messages": [USER, ASSISTANT, USER, {**ASSISTANT, "content": "5"}]},
        ([USER, ASSISTANT, USER], "5"),
    ),
    "prompt and completion": ({"prompt": "2 + 2 =", "completion": " 4"}, ("2 + 2 =", " 4")),
    "chats of prompt and completion": ({"prompt": [USER], "completion": [ASSISTANT]}, ([USER], "4")),
    "an integer": ({"question": "2 + 2 =", "answer": 4}, ("2 + 2 =", "4")),
    "a small number": ({"question": "1 / 100000 =", "answer": 0.00001}, ("1 / 100000 =", "0.00001")),
    "a half": ({"question": "1 / 2 =", "answer": 0.5}, ("1 / 2 =", "0.5")),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
        ([USER], "4"),
    ),
    "Alpaca": ({"instruction": "Add.", "input": "2, 2", "output": "4"}, ("Add.\n\n2, 2", "4")),
    "prompt and messages": ({"prompt": "2 + 2 =", "answer": "4", "messages": [USER]}, ("2 + 2 =", "4")),
}


@pytest.mark.parametrize("case", TRL_ROWS)
def test_rows_as_trl_takes_them_are_demonstrations(case: str, tmp_path: Path) -> None:
    row, expected = TRL_ROWS[case]
    assert read(tmp_path, row) == [expected]


def test_columns_and_system_prompt_hold_for_messages(tmp_path: Path) -> None:
    row = {"chat": [USER, ASSISTANT], "messages": [USER, {**ASSISTANT, "content": "four"}]}
    system = {"role": "system", "content": "Be brief."}
    assert read(tmp_path, row, system_prompt="Be brief.") == [([system, USER], "four")]
    assert read(tmp_path, row, columns={"prompt": "messages"}) == [([USER], "four")]


BAD_ROWS = {
    "no answer in messages": ({"messages": [ASSISTANT, USER]}, "row 0"),
    "one turn": ({"messages": [ASSISTANT]}, "row 0: the prompt is an empty list"),
    "two answers": ({"prompt": [USER], "completion": [ASSISTANT, ASSISTANT]}, "row 0: the answer is .*one message"),
    "an answer of the user": ({"prompt": [USER], "completion": [USER]}, "row 0: the answer is .*one message"),
    "an answer of tool calls": (
        {"prompt": [USER], "completion": [{**ASSISTANT, "tool_calls": [{"name": "f"}]}]},
        "row 0: the answer is .*one message",
    ),
    "true": ({"question": "?", "answer": True}, "row 0 has True in column 'answer', expected the answer's text"),
    "nothing": ({"question": "?", "answer": None}, "row 0 has None in column 'answer'"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_without_an_answer_to_learn_are_named(case: str, tmp_path: Path) -> None:
    row, message = BAD_ROWS[case]
    with pytest.raises(DataError, match=message):
        read(tmp_path, row)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("sft") / "model")


def test_what_max_length_leaves_out_and_cuts_is_counted(model: Path) -> None:
    tokenizer = load_tokenizer(str(model))
    sizes = ((1, 1), (1, 60), (9, 1), (30, 1))
    shown = [Demonstration("1 + " * n + "1 =", "5" * long, f"row {n}") for n, long in sizes]
    rows, (dropped, cut) = tokenize(shown, tokenizer, max_length=20)
    assert dropped.text == "2 of 4 rows: their prompts have max_length (20) tokens or more, such as row 9"
    assert cut.text.startswith("the answers of 1 of 4 rows at max_length (20)")
    assert [row["labels"][-1] == tokenizer.eos_token_id for row in rows] == [True, False]
    assert not tokenize(shown, tokenizer, max_length=200)[1]


def test_the_counts_and_the_columns_are_told_by_the_command(model: Path, tmp_path: Path) -> None:
    rows = [{"question": "1 + " * (40 if n % 2 else 1) + "1 =", "solution": n} for n in range(20)]
    config = {
        "model": str(model),
        "out": str(tmp_path / "adapter"),
        "data": {"source": write_jsonl(tmp_path / "a.jsonl", rows), "size": 20},
        "max_steps": 1,
        "max_length": 30,
        "batch_size": 4,
        "rank": 2,
        "device": "cpu",
        "target_modules": ["q_proj", "c_attn"],
    }
    summary = warm_start(SftConfig.model_validate(config))
    assert summary.examples == 10
    told = " ".join(f"{note.kind}: {note.text}" for note in summary.notes)
    for expected in (
        "'question' of ",
        "'solution' of ",
        "dropped: 10 of 20 rows: their prompts have max_length (30) tokens or more",
        "dropped: the model has no layers c_attn: q_proj are adapted",
    ):
        assert expected in told
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"] == ["q_proj"]


def make_named(kind: str, **config: Any) -> Any:
    """Return a model of an architecture whose layers have other names."""
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small, **config))


NAMED = {
    "phi3": ({"intermediate_size": 16}, {"qkv_proj", "o_proj"}, {"gate_up_proj", "down_proj"}),
    "opt": ({"word_embed_proj_dim": 16, "ffn_dim": 16}, {"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc1", "fc2"}),
    "gpt_neox": (
        {"intermediate_size": 16},
        {"query_key_value", "dense"},
        {"dense_h_to_4h", "dense_4h_to_h"},
    ),
    "qwen3": (
        {"intermediate_size": 16, "num_key_value_heads": 1, "head_dim": 8},
        {"q_proj", "k_proj", "v_proj", "o_proj"},
        {"gate_proj", "up_proj", "down_proj"},
    ),
    "gpt2": ({}, {"c_attn", "c_proj"}, {"c_fc"}),
}


@pytest.mark.parametrize("kind", NAMED)
def test_the_attentions_own_layers_are_adapted_whatever_they_are_called(kind: str) -> None:
    config, attention, others = NAMED[kind]
    model = make_named(kind, **config)
    chosen, missing = choose_targets(model, None, "it")
    assert (set(chosen), missing) == (attention, ())
    assert set(choose_targets(model, "all-linear", "it")[0]) == attention | others
    assert choose_targets(model, ["all-linear"], "it") == choose_targets(model, "all-linear", "it")
    assert choose_targets(model, (*chosen, "w_pack"), "it") == (chosen, ("w_pack",))
    with pytest.raises(AdapterError, match=f"it has none of the target modules w_pack: it has .*{chosen[0]}"):
        choose_targets(model, ["w_pack"], "it")


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_the_output_layer_and_embeddings_are_refused_as_targets(name: str) -> None:
    model = make_named("qwen3", intermediate_size=16, num_key_value_heads=1, head_dim=8)
    with pytest.raises(AdapterError, match=name):
        choose_targets(model, [name], "it")
    with pytest.raises(AdapterError, match="the output layer of it, which no engine adapts"):
        choose_targets(model, ["q_proj", "lm_head"], "it")


def test_all_linear_layers_are_adapted_where_that_is_asked_for(model: Path, tmp_path: Path) -> None:
    config = {
        "model": str(model),
        "out": str(tmp_path / "adapter"),
        "data": {"source": write_jsonl(tmp_path / "a.jsonl", [{"messages": [USER, ASSISTANT]}] * 4)},
        "max_steps": 1,
        "batch_size": 4,
        "rank": 2,
        "device": "cpu",
        "target_modules": "all-linear",
    }
    warm_start(SftConfig.model_validate(config))
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert sorted(written["target_modules"]) == sorted(LINEAR)


def test_a_template_without_a_system_role_is_one_line(model: Path) -> None:
    tokenizer = load_tokenizer(str(model))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('None.') }}{% endif %}{% endfor %}"
    )
    shown = read_demonstrations([Example([{"role": "system", "content": "Hi."}, USER], {"answer": "4"})], "answer")
    with pytest.raises(DataError, match=r"example 0 does not fit the chat template of the model: None\.") as caught:
        tokenize(shown, tokenizer, max_length=64)
    assert "\n" not in str(caught.value)


def test_prompts_are_learnt_as_engines_read_them(model: Path) -> None:
    """Also where the tokenizer appends its end: learnt behind it, an answer would never be asked for."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(str(model))
    [plain], _ = tokenize([Demonstration("2 + 2 =", "4")], tokenizer, max_length=64)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])
    [row], _ = tokenize([Demonstration("2 + 2 =", "4")], tokenizer, max_length=64)
    assert row == plain
