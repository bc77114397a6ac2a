"""The embedded model's tokenizer: byte-level BPE, numbers below 1000 whole, the constant questions in few tokens."""

import json
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from make_data import CHAIN_SUM, INSTRUCTIONS, TEMPLATES, pretraining_document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
NUM_DOCUMENTS = 20_000


def question_pieces() -> list[str]:
    """Return the constant stretches of the questions, each of which becomes one token.

    A large tokenizer would need some 150 tokens for a question that always reads the same. On a CPU reading the prompt
    would then cost more than answering, so here each stretch between the numbers is a token of its own.
    """
    pieces = []
    for template in TEMPLATES:
        stretches = template.format(numbers="#", target="#").split("#")
        pieces += [stretches[0], stretches[1], stretches[2] + INSTRUCTIONS]
    return [*pieces, CHAIN_SUM.split("{")[0]]


def build_tokenizer(seed: int) -> "PreTrainedTokenizerFast":
    """Train the tokenizer on a sample of the pretraining texts."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # as in Llama 3: digits in groups of up to three, never merged with what stands beside them
            pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = Random(seed)
    documents = [pretraining_document(rng) for _ in range(NUM_DOCUMENTS)]
    numbers = [str(number) for number in range(201) for _ in range(1000)]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        min_frequency=200,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([document.answer for document in documents] + numbers, trainer)
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in question_pieces()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Save under the class name that every version of transformers knows."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("backend", None)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    save_tokenizer(build_tokenizer(0), Path("build/tokenizer"))
