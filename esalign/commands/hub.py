"""Whether the Hugging Face hub can be reached, asked once, where its libraries would try for a minute."""

import os
import re
import ssl
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

from esalign.config.reading import leaves
from esalign.config.sections import Section
from esalign.errors import ConfigError
from esalign.space.hub import is_hub_id

PATIENCE = 6.0  # seconds to wait for the hub
_KEYS = re.compile(r"(.*\.)?(path|adapter|model|teacher|source)")


def find_hub(config: Section) -> None:
    """Let the hub's libraries work from their cache alone where the hub cannot be reached.

    Args:
        config: whose models, adapters and data sets may be of the hub; where none is, nothing is asked.

    Raises:
        ConfigError: the hub cannot be reached, and something of it is not in the cache either.
    """
    found = leaves(config.model_dump(mode="json"))
    wanted = {
        key: value
        for key, value in found.items()
        if _KEYS.fullmatch(key)
        and isinstance(value, str)
        and "/" in value
        and is_hub_id(value)
        and not Path(value).expanduser().exists()
    }
    if not wanted or "VLLM_USE_MODELSCOPE" in os.environ:  # another hub, which vLLM can ask
        return
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT):
        return
    for key, value in wanted.items():
        kind = "datasets" if key.endswith("source") else "models"
        if not (Path(constants.HF_HUB_CACHE) / f"{kind}--{value.replace('/', '--')}").is_dir():
            raise ConfigError(
                f"{key} is '{value}', which is no local file or folder and not in the cache of the Hugging Face hub, "
                f"and {constants.ENDPOINT} cannot be reached: check the path, or the network"
            )
    _go_offline()


def _answers(endpoint: str) -> bool:
    """Say whether anything answers there in time. Names are looked up in a thread, as nothing limits their time."""
    answered = threading.Event()

    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310  (the user's own setting)

    def ask() -> None:
        try:
            urllib.request.urlopen(request, timeout=PATIENCE).close()  # noqa: S310  (as above)
        except urllib.error.HTTPError:  # an answer
            answered.set()
        except OSError as error:
            if isinstance(getattr(error, "reason", None), ssl.SSLError):  # certificates that its libraries may know
                answered.set()
        else:
            answered.set()
        finally:
            done.set()

    done = threading.Event()
    threading.Thread(target=ask, daemon=True).start()
    done.wait(PATIENCE)
    return answered.is_set()


def _go_offline() -> None:
    """Set what the hub's libraries read when they are imported, and in those that are."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module, name in (("huggingface_hub.constants", "HF_HUB_OFFLINE"), ("datasets.config", "HF_HUB_OFFLINE")):
        if module in sys.modules:
            setattr(sys.modules[module], name, True)
