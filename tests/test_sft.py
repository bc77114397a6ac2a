"""The warm start by TRL, on a tiny model made on the spot."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from esalign_torch import TorchBackend
from models import make_tiny
from pydantic import ValidationError
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from esalign.errors import AdapterError, ConfigError, DataError, MissingPackageError
from esalign.sft import SftOptions, SftSummary, train_sft
from esalign.sft.demonstrations import NOT_LEARNT, Demonstration, read_demonstrations, tokenize
from esalign.space import SvdLora
from esalign.types import Example, Sampling

pytest.importorskip("trl")

QUICK = SftOptions(rank=4, learning_rate=3e-2, max_steps=20, batch_size=4, max_length=64, device="cpu")
EXAMPLES = [Example(f"{x} + {y} =", {"answer": f" {x + y}"}) for x in range(3) for y in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("sft")).model


def train(model: Path, out: Path, options: SftOptions = QUICK, **others: object) -> SftSummary:
    return train_sft(model, EXAMPLES, completion_column="answer", out=out, options=options, **others)  # type: ignore[arg-type]  # passed through


def test_training_writes_a_peft_adapter_and_lowers_the_loss(model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    summary = train(model, tmp_path / "a", on_step=lambda step, loss: seen.append((step, loss)))
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"]) == (4, 8, "none")
    assert sorted(config["target_modules"]) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert [step for step, _ in seen] == list(range(1, 21))
    assert summary.final_loss == seen[-1][1] < 0.8 * seen[0][1]
    assert (summary.steps, summary.examples, summary.adapter) == (20, 12, tmp_path / "a")
    assert summary.tokens > 0
    assert summary.seconds > 0


def test_the_adapter_has_full_rank_so_that_its_singular_values_span_the_space(model: Path, tmp_path: Path) -> None:
    train(model, tmp_path / "a")
    factors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {np.linalg.matrix_rank(factor) for factor in factors.values()} == {4}


def test_the_seed_decides_the_adapter(model: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(model, tmp_path / name, SftOptions(rank=2, max_steps=2, batch_size=4, device="cpu", seed=seed))
    first, again, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("a", "b", "c"))
    assert first == again
    assert first != other


@pytest.mark.parametrize("steps", [1, 2, 19, 20])
def test_no_warm_up_eats_a_short_training(model: Path, tmp_path: Path, steps: int) -> None:
    """Sixteen examples and one epoch are one step of 16: it was one of rate 0."""
    options = SftOptions(rank=2, max_steps=None if steps == 1 else steps, epochs=1, batch_size=16, device="cpu")
    examples = [Example(f"{x} + {y} =", {"answer": f" {x + y}"}) for x in range(4) for y in range(4)]
    summary = train_sft(model, examples, completion_column="answer", out=tmp_path / "a", options=options)
    assert summary.steps == steps
    factors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert all(np.abs(factor).max() > 1e-5 for name, factor in factors.items() if "lora_B" in name)
    assert SvdLora.from_pretrained(tmp_path / "a").dim > 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"learning_rate": 1e-45}, "is zero after 1 steps, so it learnt nothing: raise learning_rate"),
        (
            {"learning_rate": 1e38, "max_steps": 3},
            "holds numbers that are not finite after 3 steps: lower learning_rate",
        ),
    ],
)
def test_an_adapter_that_learnt_nothing_is_refused_and_not_written(
    model: Path, tmp_path: Path, changes: dict[str, float], told: str
) -> None:
    options = SftOptions.model_validate({"rank": 2, "max_steps": 1, "batch_size": 4, "device": "cpu", **changes})
    with pytest.raises(AdapterError, match=told):
        train(model, tmp_path / "a", options)
    assert not (tmp_path / "a").exists()


def test_training_is_silent(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(model, tmp_path / "a")
    assert "".join(capfd.readouterr()) == ""


def test_only_the_answer_is_learnt(model: Path, tmp_path: Path) -> None:
    """Equal answers are soon expected (0.68), random numbers never: learnt too, the loss ends at 3.3 nats a token."""
    rng = np.random.default_rng(0)
    examples = [Example(" ".join(map(str, rng.integers(0, 99, 6))) + " =", {"answer": " 7"}) for _ in range(16)]
    options = SftOptions(learning_rate=2e-2, max_steps=40, batch_size=8, device="cpu")
    summary = train_sft(model, examples, completion_column="answer", out=tmp_path / "a", options=options)
    assert summary.final_loss < 1.0


def test_the_answer_is_learnt_behind_the_very_tokens_that_an_engine_reads(model: Path, tmp_path: Path) -> None:
    """The tokenizer joins "4" and "2" to one token, which an engine that reads "= 4" can never be asked for."""
    prompt, answer = "6 * 7 = 4", "2"
    engine = TorchBackend(model, device="cpu")
    joined, apart = engine.encode(prompt + answer), engine.encode(prompt)
    assert joined[: len(apart)] != apart
    options = SftOptions(learning_rate=3e-2, max_steps=30, batch_size=4, device="cpu")
    train_sft(
        model, [Example(prompt, {"answer": answer})] * 4, completion_column="answer", out=tmp_path, options=options
    )
    trained = TorchBackend(model, SvdLora.from_pretrained(tmp_path), device="cpu")
    [[completion]] = trained.generate(np.zeros((1, trained.space.dim)), [prompt], Sampling(max_tokens=4))
    assert (completion.text, completion.finish_reason) == (answer, "stop")


def test_only_answers_and_their_ends_are_labelled(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    engine = TorchBackend(model, device="cpu")
    chat = [{"role": "user", "content": "2 + 2 ="}]
    shown = [Demonstration("2 + 2 =", " 4"), Demonstration(chat, "4")]
    for demonstration, row in zip(shown, tokenize(shown, tokenizer, max_length=64)[0], strict=True):
        length = len(engine.encode(demonstration.prompt))
        assert tuple(row["input_ids"][:length]) == engine.encode(demonstration.prompt)
        assert row["labels"][:length] == [NOT_LEARNT] * length
        assert row["labels"][length:] == row["input_ids"][length:]
        assert row["labels"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row["labels"][length:], skip_special_tokens=True).strip() == "4"


def test_prompts_that_leave_no_room_for_answers_are_refused(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    shown = [Demonstration("1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 =", "8"), Demonstration("1 =", "1")]
    assert len(tokenize(shown, tokenizer, max_length=8)[0]) == 1
    with pytest.raises(DataError, match="raise max_length"):
        tokenize(shown[:1], tokenizer, max_length=8)


def test_chat_messages_are_trained_on_by_the_chat_template(model: Path, tmp_path: Path) -> None:
    examples = [Example([{"role": "user", "content": "2 + 2 ="}], {"answer": "4"})] * 4
    options = SftOptions(max_steps=1, batch_size=4, device="cpu")
    summary = train_sft(model, examples, completion_column="answer", out=tmp_path / "a", options=options)
    plain = train_sft(
        model,
        [Example("2 + 2 =", {"answer": "4"})] * 4,
        completion_column="answer",
        out=tmp_path / "b",
        options=options,
    )
    assert summary.tokens > plain.tokens


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no demonstrations"),
        ([Example("2 + 2 =", {"question": "?"})], "column 'answer'.*its columns: question"),
        ([Example("2 + 2 =", {"answer": ""})], "expected the answer's text"),
        ([Example([1, 2, 3], {"answer": "4"})], "token ids"),
    ],
)
def test_unusable_demonstrations_are_refused(examples: list[Example], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_demonstrations(examples, "answer")


def test_modules_that_the_model_lacks_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="target modules c_attn"):
        train(model, tmp_path / "a", SftOptions(target_modules=("c_attn",), max_steps=1, device="cpu"))


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere' cannot be loaded"):
        train(tmp_path / "nowhere", tmp_path / "a")


def test_a_missing_trl_is_named_with_the_command_that_installs_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingPackageError, match=r'pip install "esalign\[sft\]"'):
        train(model, tmp_path / "a")


@pytest.mark.parametrize(
    ("field", "value"),
    [("rank", 0), ("learning_rate", 0.0), ("epochs", -1.0), ("max_steps", 0), ("batch_size", 0), ("device", "tpu")],
)
def test_impossible_options_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        SftOptions(**{field: value})  # type: ignore[arg-type]  # wrong on purpose
