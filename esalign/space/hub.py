"""Models and adapters on the Hugging Face hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from esalign.errors import EsalignError

_HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")


def is_hub_id(name: str) -> bool:
    """Say whether a name may be an id of the hub: ``owner/name``, or a name alone, which a few old models have.

    >>> [is_hub_id(name) for name in ("owner/name", "gpt2", "./name", "a/b/c", "~/model")]
    [True, True, False, False, False]
    """
    return _HUB_ID.fullmatch(name) is not None


def find_folder(name: str | Path, noun: str, files: Sequence[str], error: type[EsalignError]) -> Path:
    """Return a local folder as it is, and one of the hub as its copy in the cache, fetched if need be.

    Args:
        name: a folder, or an id of the hub, ``owner/name``.
        noun: what it is, for messages.
        files: patterns of the files that are wanted.
        error: raised where it is neither.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists() or not ("/" in str(name) and is_hub_id(str(name))):
        raise error(
            f"{noun} '{name}' is neither a folder with {', '.join(files)} nor an id of the Hugging Face hub: "
            + ("a GGUF file is known by its ending .gguf" if path.is_file() else "check the path")
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=list(files)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as failure:
        raise error(
            f"{noun} '{name}' is neither a local folder nor readable on the Hugging Face hub "
            f"({type(failure).__name__}): check the path"
        ) from failure
