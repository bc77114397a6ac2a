"""From the model that a user names to the GGUF file that llama.cpp loads."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from esalign.errors import BackendError
from esalign.space.hub import find_folder
from esalign_llama_cpp.config import read_config
from esalign_llama_cpp.convert import STORED_TYPES, convert_model, read_weights, weight_files
from esalign_llama_cpp.quantize import BLOCKS, check_rows, quantize_model

QUANTIZATIONS = (*STORED_TYPES, *BLOCKS)
KIND_OF_DTYPE = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
FORMAT = "3"
"""Changes when the converter writes something else, so that older files in a cache are not used."""

CONVERTED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Source:
    """What to load.

    Args:
        gguf: the GGUF file.
        folder: the Hugging Face folder that it was made from; None where the user gave a GGUF file.
        ends: ids that end a completion, as the folder says.
        temporary: holds the file where no cache folder was given; it goes when this object goes.
    """

    gguf: Path
    folder: Path | None = None
    ends: tuple[int, ...] = ()
    temporary: "tempfile.TemporaryDirectory[str] | None" = None

    def close(self) -> None:
        """Remove the temporary file."""
        if self.temporary is not None:
            self.temporary.cleanup()


def find_source(
    model: str | Path, *, dtype: str, quantization: str | None, cache: str | Path | None, threads: int
) -> Source:
    """Return a GGUF file as it is, or make one of a Hugging Face model.

    Args:
        model: a GGUF file, a Hugging Face folder, or an id on the hub.
        dtype: of a converted model that is not quantised; auto for that of its weights.
        quantization: of a converted model, one of `QUANTIZATIONS`.
        cache: folder that keeps converted models, by their content; None for a temporary one.
        threads: CPU threads for quantising.

    Raises:
        BackendError: no such model, or one that cannot be converted.
    """
    path = Path(model).expanduser()
    if path.is_file() or path.suffix == ".gguf":
        if quantization is not None:
            raise BackendError(
                f"quantization is {quantization!r}, but '{model}' is a GGUF file, which has its own: leave it out"
            )
        return Source(path)
    folder = find_folder(path, "model", ("*.json", "*.safetensors", "*.jinja"), BackendError)
    config = read_config(folder)
    kind = quantization or KIND_OF_DTYPE.get(dtype) or _own_kind(folder)
    if kind in BLOCKS:
        check_rows(config, kind)
    temporary = tempfile.TemporaryDirectory(prefix="esalign-gguf-") if cache is None else None
    home = Path(temporary.name if temporary else cache or "").expanduser()
    home.mkdir(parents=True, exist_ok=True)
    target = home / f"{folder.resolve().name}-{kind}-{fingerprint(folder)[:16]}.gguf"
    try:
        if not target.is_file():
            _make(folder, target, kind, threads)
    except BaseException:
        if temporary:
            temporary.cleanup()
        raise
    return Source(target, folder, config.ends, temporary)


def fingerprint(folder: Path) -> str:
    """Return a hash of all that the conversion reads."""
    digest = hashlib.sha256(FORMAT.encode())
    for file in (*(folder / name for name in CONVERTED), *sorted(folder.glob("*.safetensors"))):
        if file.is_file():
            digest.update(f"{file.name} {file.stat().st_size} ".encode())
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _make(folder: Path, target: Path, kind: str, threads: int) -> None:
    """Convert, and quantise where wanted; the target appears whole or not at all."""
    working = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    plain = working.with_suffix(".plain")
    try:
        if kind in STORED_TYPES:
            convert_model(folder, working, kind=kind)
        else:
            convert_model(folder, plain, kind="f32")
            quantize_model(plain, working, kind, threads=threads)
        working.replace(target)
    finally:
        working.unlink(missing_ok=True)
        plain.unlink(missing_ok=True)


def _own_kind(folder: Path) -> str:
    """Return the type that is nearest to that of the weights in a folder."""
    for file in weight_files(folder):
        kinds = {kind for _, kind in read_weights(file, lambda tensors, name: tensors.get_slice(name).get_dtype())}
        if "F32" in kinds or "BF16" in kinds:
            return "f32" if "F32" in kinds else "bf16"
    return "f16"
