"""What engines share of text: prompts end where they end, special tokens stop, and no turn of a chat is left out."""

from pathlib import Path
from typing import Any

import pytest
from models import make_tokenizer
from transformers import AutoTokenizer

from esalign.engines.stops import StopStrings
from esalign.engines.text import TextCodec
from esalign.errors import BackendError
from esalign.fitness.completions import prefilled

BOS, EOS, END = 2, 1, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def open_codec(folder: Path, single: str | None = None, template: str | None = None) -> TextCodec:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if single:
        from tokenizers.processors import TemplateProcessing

        special = [("<|bos|>", BOS), ("<|eos|>", EOS)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    if template:
        tokenizer.chat_template = template
    return TextCodec(tokenizer, vocab=320, ends=[EOS, 40], context=None, chat_template_kwargs=None, label="model 'm'")


@pytest.mark.parametrize("single", ["$A <|eos|>", "<|bos|> $A <|eos|>", "<|bos|> $A"])
def test_a_prompt_does_not_end_in_the_end_that_a_tokenizer_appends(folder: Path, single: str) -> None:
    codec, plain = open_codec(folder, single), open_codec(folder)
    begin = (BOS,) * single.startswith("<|bos|>")
    for text in ("2 + 2 =", "a", "東京", " "):
        assert codec.encode(text) == begin + plain.encode(text)
    assert codec.encode("2 <|eos|>")[-1] == EOS


def test_a_begin_in_the_text_is_not_doubled(folder: Path) -> None:
    codec = open_codec(folder, "<|bos|> $A")
    assert codec.encode("<|bos|>2 + 2 =") == codec.encode("2 + 2 =")
    assert codec.encode("<|bos|><|bos|>2")[:3] == (BOS, BOS, codec.encode("2")[1])
    assert codec.encode("2 <|bos|>")[-1] == BOS
    assert open_codec(folder).encode("<|bos|><|bos|>2")[:2] == (BOS, BOS)
    assert codec.encode((BOS, BOS, 7)) == (BOS, BOS, 7)


def test_a_special_tokens_text_as_a_stop_string_ends_a_completion(folder: Path) -> None:
    codec = open_codec(folder)
    four, seven = codec.encode("4")[0], codec.encode("7")[0]
    assert codec.ends_with(("<|end|>",)) == {EOS, 40, END}
    assert codec.ends_with(("4",)) == codec.ends == {EOS, 40}
    done = codec.complete([four, END], ("<|end|>",))
    assert (done.text, done.finish_reason, done.token_ids) == ("4", "stop", (four, END))
    assert codec.complete([four, END, seven], ()).text == "47"


@pytest.mark.parametrize(
    ("stop", "text"), [("4<|end|>", "7"), ("<|end|>7", "74"), ("<|end|><|user|>", "747"), ("x", "747")]
)
def test_a_stop_string_of_a_special_token_and_more_is_found(folder: Path, stop: str, text: str) -> None:
    codec = open_codec(folder)
    ids = list(codec.encode("74<|end|>7<|end|><|user|>2"))
    whole = "7472"
    finder, found = StopStrings(codec, (stop,)), None
    for count in range(1, len(ids) + 1):
        if finder.may_complete(ids[count - 1]) and finder.completed(ids[:count]):
            found = count
            break
    if stop == "x":
        assert found is None
        assert codec.complete(ids, (stop,)).text == whole
        return
    done = codec.complete(ids[:found], (stop,))
    assert (done.text, done.finish_reason) == (text, "stop")


TOOLS = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments | tojson }})"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CHAT = (
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "user", "content": "Go on."},
)


def test_tool_calls_are_rendered_by_the_template_or_refused(folder: Path) -> None:
    codec = open_codec(folder, template=TOOLS)
    assert 'add({"a": 1})' in codec.tokenizer.decode(codec.encode(CHAT))
    with pytest.raises(BackendError, match="has tool calls, which the chat template of model 'm' leaves out"):
        open_codec(folder).encode(CHAT)
    assert open_codec(folder).encode(CHAT[:1])


def test_a_template_that_refuses_a_role_is_one_line(folder: Path) -> None:
    strict = "{% for m in messages %}{{ raise_exception('No system.') if m.role == 'system' }}{% endfor %}"
    with pytest.raises(BackendError, match=r"does not fit .*: No system\. \(its roles: system, user\)") as caught:
        open_codec(folder, template=strict).encode(({"role": "system", "content": "Hi."}, CHAT[0]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("beginning", ["", "<think>", "<think>\n", "<think>\n\n", "<thought>\n"])
def test_a_tag_that_a_chat_template_opens_is_known(folder: Path, beginning: str, special: bool) -> None:
    codec: Any = open_codec(folder, "<|bos|> $A", template=TOOLS.replace("<|assistant|>", f"<|assistant|>{beginning}"))
    if special:
        codec.tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
        codec.vocab = len(codec.tokenizer)
    assert prefilled(codec, ["2 + 2 = ?", CHAT[:1]]) == ["", beginning]
