"""The warm start: a LoRA adapter trained on a few demonstrations, which the evolution then reshapes.

TRL's SFTTrainer does the work; here its many options are cut down to those that a warm start needs. The loss is on the
answers alone.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from esalign.config.sft import SftOptions
from esalign.data import Note
from esalign.engines.loading import keep_soft_cap
from esalign.errors import AdapterError, ConfigError, MissingPackageError
from esalign.sft.demonstrations import Demonstration, read_demonstrations, tokenize
from esalign.sft.targets import choose_targets
from esalign.types import Example

if TYPE_CHECKING:
    from transformers import TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

OnStep = Callable[[int, float], None]
"""Called with (steps done, loss of the last step)."""


@dataclass(frozen=True)
class SftSummary:
    """What a training came to.

    Args:
        adapter: the PEFT folder that was written.
        examples: number of demonstrations that were trained on.
        steps: optimiser steps done.
        loss: mean loss per answer token over the whole training.
        final_loss: the same of the last step.
        tokens: tokens read, padding left out, prompts included.
        seconds: wall-clock time of the training itself.
        notes: what was dropped, cut or assumed, for the user to see.
    """

    adapter: Path
    examples: int
    steps: int
    loss: float
    final_loss: float
    tokens: int
    seconds: float
    notes: tuple[Note, ...] = ()


def train_sft(
    model: str | Path,
    examples: Iterable[Example],
    *,
    completion_column: str,
    out: str | Path,
    options: SftOptions | None = None,
    on_step: OnStep | None = None,
) -> SftSummary:
    """Train a LoRA adapter on demonstrations and write it as a PEFT folder.

    Args:
        model: a Hugging Face id or folder of a causal language model with its tokenizer.
        examples: the demonstrations: prompts as text or chat messages.
        completion_column: the column of each example that holds the answer to learn, as text.
        out: the folder to write, made if need be.
        options: see ``SftOptions``; None is its defaults.
        on_step: told of each step; without it the training is silent.

    Raises:
        MissingPackageError: TRL is not installed.
        DataError: no example, or one without an answer or with a prompt that cannot be trained on.
        ConfigError: the model cannot be loaded.
        AdapterError: the model has none of the target modules; or the adapter did not learn, and is not written.
    """
    options = options or SftOptions()
    shown = read_demonstrations(examples, completion_column)
    _require_trl()
    start = time.perf_counter()
    with _quiet(), tempfile.TemporaryDirectory() as scratch:
        losses: list[float] = []
        trainer, notes = _build_trainer(str(model), shown, options, Path(scratch), _recorder(losses, on_step))
        result = trainer.train()
        adapted: Any = trainer.model
        _refuse_untrained(adapted, options, steps=int(result.global_step))
        adapted.save_pretrained(str(out))
        tokens = int(trainer.state.num_input_tokens_seen)
    return SftSummary(
        adapter=Path(out),
        examples=len(cast("Any", trainer.train_dataset)),
        steps=int(result.global_step),
        loss=float(result.training_loss),
        final_loss=losses[-1],
        tokens=tokens,
        seconds=time.perf_counter() - start,
        notes=notes,
    )


def _refuse_untrained(adapted: Any, options: SftOptions, *, steps: int) -> None:
    """Refuse an adapter whose B factors are as they began, zero, or no numbers: a search cannot start from it.

    Raises:
        AdapterError: naming the first layer.
    """
    for name, weight in adapted.named_parameters():
        layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
        if "lora_" in name and not weight.isfinite().all():
            raise AdapterError(
                f"the adapter of {layer} holds numbers that are not finite after {steps} steps: lower learning_rate "
                f"({options.learning_rate:g}), or train in dtype float32 or bfloat16"
            )
        if "lora_B" in name and not weight.any():
            raise AdapterError(
                f"the adapter of {layer} is zero after {steps} steps, so it learnt nothing: raise learning_rate "
                f"({options.learning_rate:g}) or epochs, or leave layers that are not used out of target_modules"
            )


def _require_trl() -> None:
    try:
        import trl  # noqa: F401  # whether it can be imported is all that matters here
    except ImportError as error:
        raise MissingPackageError("esalign sft", "trl", "sft") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' progress bars and notes; errors still show."""
    import datasets
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
        if not bars:
            datasets.enable_progress_bars()


def _recorder(losses: list[float], on_step: OnStep | None) -> "TrainerCallback":
    """Return a callback that keeps every step's loss and passes it on."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002  # the library's signature
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))
                if on_step is not None:
                    on_step(int(state.global_step), losses[-1])

    return Recorder()


def _build_trainer(
    model: str, shown: Sequence[Demonstration], options: SftOptions, scratch: Path, recorder: "TrainerCallback"
) -> "tuple[SFTTrainer, tuple[Note, ...]]":
    """Return the trainer, and what the user should know of demonstrations and layers."""
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
    from trl.trainer.sft_trainer import SFTTrainer

    set_seed(options.seed)  # the adapter's random start is drawn from the global generators
    try:
        base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, options.dtype))
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:  # as transformers says that there is no such model
        raise ConfigError(f"model '{model}' cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    keep_soft_cap(base)
    targets, missing = choose_targets(base, options.target_modules, f"the model {model!r}")
    records, notes = tokenize(shown, tokenizer, max_length=options.max_length)
    if missing:
        adapted = ", ".join(targets)
        text = f"the model has no layers {', '.join(missing)}: {adapted} are adapted; target_modules can name others"
        notes.append(Note("dropped", text))
    if tokenizer.pad_token is None:  # any token will do: it is neither attended to nor learnt
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    lora = LoraConfig(
        r=options.rank,
        lora_alpha=2 * options.rank if options.alpha is None else options.alpha,
        target_modules=list(targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    trainer = SFTTrainer(
        model=base,
        args=_trainer_options(options, scratch, len(records)),
        train_dataset=datasets.Dataset.from_list(records),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[recorder],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, tuple(notes)


def _trainer_options(options: SftOptions, scratch: Path, num_records: int) -> "SFTConfig":
    import torch
    from trl.trainer.sft_config import SFTConfig

    steps = options.max_steps or math.ceil(options.epochs * math.ceil(num_records / options.batch_size))
    return SFTConfig(
        output_dir=str(scratch),
        max_length=None,  # they are cut already
        per_device_train_batch_size=options.batch_size // options.gradient_accumulation,
        gradient_accumulation_steps=options.gradient_accumulation,
        max_steps=steps,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,  # the first step of a warm-up has rate 0, so a short training has none
        seed=options.seed,
        data_seed=options.seed,
        use_cpu=options.device == "cpu" or not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        include_num_input_tokens_seen="non_padding",
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
