"""Loading a causal language model of transformers and its tokenizer, quietly, with errors of one line."""

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esalign.assets import adapter_path, model_path
from esalign.engines.checks import check_choice
from esalign.errors import BackendError
from esalign.files import expand_home
from esalign.space.hub import is_hub_id
from esalign.space.imports import hushed, import_peft, import_transformers

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16", "auto")


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer.

    Args:
        model: a causal language model, with or without a PEFT adapter, for inference, on its device.
        tokenizer: its tokenizer.
        label: for messages, e.g. ``student 'embedded'``.
    """

    model: Any
    tokenizer: Any
    label: str

    @property
    def rows(self) -> int:
        """Number of rows of the output head."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end a completion, the model's own first choice first."""
        return list_ends(self.model.generation_config, self.tokenizer)

    def complete(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Return greedy completions of prompts (token ids), up to and including the end of sequence."""
        import torch

        width = max(len(prompt) for prompt in prompts)
        # Shape (prompts, tokens), padded on the left, where no attention falls.
        ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=torch.tensor(ids, device=self.model.device),
                attention_mask=torch.tensor(mask, device=self.model.device),
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=list(self.ends) or None,
                pad_token_id=0,
            )
        rows: list[list[int]] = output[:, width:].tolist()
        stops = [next((at + 1 for at, token in enumerate(row) if token in self.ends), len(row)) for row in rows]
        return [row[:stop] for row, stop in zip(rows, stops, strict=True)]

    def log_probabilities(self, prompt: Sequence[int], completion: Sequence[int]) -> "torch.Tensor":
        """Return those of all tokens at each place of a completion, teacher-forced, shape (tokens, vocab), float32."""
        import torch

        ids = torch.tensor([[*prompt, *completion]], device=self.model.device)
        with torch.inference_mode():
            logits = self.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        return logits.float().log_softmax(dim=-1)


def load_model(
    role: str,
    path: str,
    adapter: str | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    attn_implementation: str | None = None,
) -> LoadedModel:
    """Load a causal language model for inference, with a LoRA adapter when one is given.

    Args:
        role: for messages: ``model``, ``student`` or ``teacher``.
        path: Hugging Face id, folder, GGUF file (whose weights are dequantised), or ``embedded``.
        adapter: PEFT folder or hub id, ``embedded``, or None.
        dtype: float32, bfloat16, float16, or auto for the checkpoint's own.
        device: auto, cpu, cuda or cuda:N.
        trust_remote_code: run code that comes with the model.
        revision: branch, tag or commit of a model on the hub.
        attn_implementation: as in transformers; None for its choice, or eager where attention has a soft cap.

    Raises:
        BackendError: it cannot be loaded, or lacks weights; or an option is out of range.
    """
    check_choice("dtype", dtype, DTYPES)
    label = f"{role} '{path}'"
    target = _find_device(device)
    if not Path(model_path(path)).exists() and not is_hub_id(path):
        raise BackendError(
            f"{label} cannot be loaded: there is no such file or folder, and an id of the Hugging Face hub is "
            "owner/name: check the path"
        )
    common = {"trust_remote_code": trust_remote_code, "revision": revision}
    model: Any
    info: Any
    with quiet(), one_line_errors(label):
        transformers = import_transformers()
        from esalign.space.skeleton import ShapesByCPU

        place, unpacked = _unpack(model_path(path))
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=unpacked.get("gguf_file"), **common)
        with ShapesByCPU():
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                place,
                dtype=dtype,
                attn_implementation=attn_implementation,
                output_loading_info=True,
                **{**common, **unpacked},
            )
        if adapter is not None:
            model = import_peft().PeftModel.from_pretrained(model, adapter_path(adapter))
        if attn_implementation is None:
            keep_soft_cap(model)
        model.eval().requires_grad_(requires_grad=False)
        model.to(target)
    if info["missing_keys"]:
        raise BackendError(f"{label} has no weights for {min(info['missing_keys'])!r}: the checkpoint is not complete")
    return LoadedModel(model, tokenizer, label)


def keep_soft_cap(model: Any) -> None:
    """Let a model with a soft cap in its attention (Gemma 2) compute it step by step.

    transformers' own choice, ``sdpa``, leaves the cap out without a word.
    """
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")


def _unpack(path: str) -> tuple[str, dict[str, Any]]:
    """Return where transformers finds a model, and what it must be told to read a GGUF file as plain weights."""
    if not path.endswith(".gguf"):
        return path, {}
    file = Path(path)
    if not file.is_file():
        raise OSError(f"there is no file '{path}'")
    told: dict[str, Any] = {"gguf_file": file.name}
    import transformers

    if hasattr(transformers, "GgufConfig"):  # since 5: packed unless told otherwise
        told["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return str(file.parent), told


def load_tokenizer(path: str) -> Any:
    """Load a tokenizer, from a folder or the Hugging Face hub.

    Raises:
        BackendError: it cannot be loaded.
    """
    with quiet(), one_line_errors(f"the tokenizer '{path}'"):
        return import_transformers().AutoTokenizer.from_pretrained(expand_home(path))


def _find_device(name: str) -> "torch.device":
    """Return the device of a name; auto is the GPU where there is one.

    Raises:
        BackendError: no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    expected = f"device is {name!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:<number>'"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackendError(expected) from error
    if device.type not in ("cpu", "cuda"):
        raise BackendError(f"{expected}: esalign has no support for {device.type}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"device is {name!r}, but this machine has {torch.cuda.device_count()} CUDA GPUs: use 'cpu'")
    return device


def list_ends(generation: Any, tokenizer: Any = None) -> tuple[int, ...]:
    """Return the ids that end a completion: those of the generation config, and the tokenizer's.

    The first choice comes first: the tokenizer's, where the generation config has it too.

    >>> from types import SimpleNamespace as Config
    >>> list_ends(Config(eos_token_id=[7, 2]), Config(eos_token_id=2)), list_ends(None, Config(eos_token_id=2))
    ((2, 7), (2,))
    """
    configured = generation.eos_token_id if generation else None
    listed = configured if isinstance(configured, list | tuple) else [configured]
    own = getattr(tokenizer, "eos_token_id", None)
    ordered: Sequence[int | None] = [own, *listed] if own in listed else [*listed, own]
    return tuple(dict.fromkeys(int(token) for token in ordered if token is not None))


@contextlib.contextmanager
def one_line_errors(label: str) -> Iterator[None]:
    """Turn what transformers raises for something that cannot be loaded into one line.

    Args:
        label: what it is, e.g. ``model 'embedded'``.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        ImportError,
        IndexError,  # this one and the next: a GGUF file that is cut short
        struct.error,
        SafetensorError,
    ) as error:
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            raise BackendError(f"{label} does not fit the device's memory: use a smaller one or int8") from error
        detail = " ".join(str(error).split())[:300]
        raise BackendError(f"{label} cannot be loaded: {type(error).__name__}: {detail}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars of loading, warnings, and what torchao says of missing kernels."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with hushed():
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
