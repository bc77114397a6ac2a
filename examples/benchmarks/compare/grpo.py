"""The rows with gradients: TRL's GRPO on all of the LoRA factors, or on their singular values alone."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from meter import Meter
from peft import PeftModel
from problems import start_of
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from esalign.assets import adapter_path, model_path
from esalign.commands.build import load_splits, make_pool
from esalign.config.run import RunConfig
from esalign.rewards.pool import RewardPool
from esalign.space import Factor, SvdLora
from esalign.types import Example


class Offsets(nn.Module):
    """A LoRA factor whose only parameters are offsets to its singular values, in the units of `SvdLora`."""

    def __init__(self, factor: Factor) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(factor.count))
        self.U = nn.Buffer(torch.from_numpy(factor.U[:, : factor.count] * np.float32(factor.scale)))
        self.Vt = nn.Buffer(torch.from_numpy(factor.Vt[: factor.count]))
        self.start = factor.start

    def forward(self, weight: Tensor) -> Tensor:
        """Return the factor with its offsets."""
        return weight + (self.U * self.x) @ self.Vt


def restrict(model: Any, space: SvdLora) -> list[Offsets]:
    """Leave nothing to train but the offsets of the space."""
    model.requires_grad_(requires_grad=False)
    found = []
    for module in space.modules:
        layer = model.get_submodule(f"base_model.model.{module.name}")
        for pair, factor in ((layer.lora_A, module.a), (layer.lora_B, module.b)):
            offsets = Offsets(factor)
            parametrize.register_parametrization(pair["default"], "weight", offsets)
            pair["default"].parametrizations.weight.original.requires_grad_(requires_grad=False)
            found.append(offsets)
    return found


class Watch(TrainerCallback):
    """Tells the meter of the trainer's steps, and stops the trainer when the budget is spent."""

    def __init__(self, meter: Meter, reward: "Reward", save: Any) -> None:
        self._meter, self._reward, self._save = meter, reward, save

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Start the clock."""
        self._meter.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Count the step."""
        prompt, generated = self._reward.take()
        trained = self._reward.last
        self._meter.step(self._save, prompt=prompt, generated=generated, trained=trained)
        control.should_training_stop = self._meter.over


class Reward:
    """The run's rewards as TRL calls them; it also counts the tokens of the answers."""

    __name__ = "reward"

    def __init__(self, pool: RewardPool, examples: tuple[Example, ...], tokenizer: Any, meter: Meter) -> None:
        self._pool, self._examples, self._tokenizer, self._meter = pool, examples, tokenizer, meter
        self._prompt = self._generated = self.last = 0

    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], index: list[int], **_: Any
    ) -> list[float | None]:
        """Return the rewards of completions to the problems of the given indices."""
        self._prompt = sum(map(len, self._tokenizer(prompts).input_ids))
        self._generated = sum(map(len, completion_ids))
        self.last = self._prompt + self._generated
        with self._meter.part("scoring answers"):
            scores = self._pool.score([self._examples[i] for i in index], completions)
        return [scores.rewards[place] for place in range(len(completions))]

    def take(self) -> tuple[int, int]:
        """Return the tokens read and generated since the last call; none while answers are used again."""
        tokens = self._prompt, self._generated
        self._prompt = self._generated = 0
        return tokens


def train_grpo(config: RunConfig, options: dict[str, float], meter: Meter, *, singular: bool) -> None:
    """Train by GRPO until the budget is spent."""
    logging.set_verbosity_error()
    path = model_path(config.model.path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    space = start_of(config)
    model: Any = PeftModel.from_pretrained(base, adapter_path(str(config.model.adapter)), is_trainable=True)
    offsets = restrict(model, space) if singular else []
    examples = load_splits(config).train.examples

    def save(folder: Path) -> None:
        if not singular:
            model.save_pretrained(folder / "adapter")
            return
        vector = np.zeros(space.dim)
        for part in offsets:
            vector[part.start : part.start + len(part.x)] = part.x.detach().cpu().numpy()
        space.save_pretrained(vector, folder / "adapter")

    _time_generation(model, meter, cached=singular)
    with make_pool(config.rewards, config.scoring) as pool:
        reward = Reward(pool, examples, tokenizer, meter)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=_trainer_options(config, options, meter.folder),
            train_dataset=Dataset.from_list([{"prompt": e.prompt, "index": i} for i, e in enumerate(examples)]),
            processing_class=tokenizer,
            callbacks=[Watch(meter, reward, save)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _time_generation(model: Any, meter: Meter, *, cached: bool) -> None:
    """Count generating as a part of its own; there, the factors are made of their offsets once a call."""
    generate = model.generate

    def timed(*args: Any, **kwargs: Any) -> Any:
        with meter.part("generating"), parametrize.cached() if cached else nullcontext():
            return generate(*args, **kwargs)

    model.generate = timed


def _trainer_options(config: RunConfig, options: dict[str, float], folder: Path) -> GRPOConfig:
    """Return TRL's defaults, but for what is swept, what the task fixes, and what a CPU needs."""
    return GRPOConfig(
        output_dir=str(folder / "trainer"),
        learning_rate=options["lr"],
        num_generations=int(options["group"]),
        per_device_train_batch_size=int(options.get("batch", 128)),
        num_iterations=int(options.get("iterations", 1)),
        max_completion_length=config.sampling.max_tokens,
        temperature=1.0,
        beta=0.0,
        lr_scheduler_type="constant",
        max_steps=1_000_000,
        seed=config.run.seed % 2**32,
        use_cpu=config.backend.device == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
