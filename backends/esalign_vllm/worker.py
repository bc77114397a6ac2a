"""vLLM's worker extension. vLLM imports it in every worker before the model is loaded, and nobody else does.

That import is the one place where a worker can be prepared in time, hence `prepare_worker` at the end of the file:
the stand-ins for LoRA layers must be there before memory is measured, the model compiled and graphs captured.
"""

from importlib import import_module
from typing import Any

from esalign_vllm.population import Population, Unsupported

SETTINGS = "esalign"
"""Key of vLLM's ``additional_config`` under which the backend leaves the mode and the file of factors."""


class PopulationWorker:
    """Methods that vLLM adds to its workers, to be called by ``collective_rpc``. Arrays travel as bytes."""

    model_runner: Any

    def esalign_start(self) -> dict[str, Any]:
        """Reserve the slots. Returns the names of the adapted layers of this worker, or the problem with it."""
        manager = getattr(self.model_runner, "lora_manager", None)
        population = getattr(manager, "esalign_population", None)
        if not isinstance(population, Population):
            return {"problem": str(population or "its LoRA manager is built in another way"), "adapted": []}
        try:
            population.reserve()
        except (AttributeError, TypeError, ValueError, NotImplementedError) as error:
            return {"problem": f"its LoRA manager is built in another way ({error})", "adapted": []}
        return {"problem": "", "adapted": population.adapted}

    def esalign_write(self, raw: bytes, population: int) -> None:
        """Make candidates current: singular values, float32 of shape (population, width)."""
        self.model_runner.lora_manager.esalign_population.write(raw, population)


def prepare_worker() -> None:
    """Hook the installation into the making of vLLM's LoRA manager, and mend what fails on CPUs."""
    from vllm.platforms import current_platform

    manager_class: Any = import_module("vllm.lora.worker_manager").LRUCacheWorkerLoRAManager
    if current_platform.is_cpu():
        _find_device_of_packed_weights()
        _count_ranks_eagerly()
        _spare_generators()
    original = manager_class.create_lora_manager
    if getattr(original, SETTINGS, False):
        return

    def create_lora_manager(self: Any, *args: Any, **kwargs: Any) -> Any:
        model = original(self, *args, **kwargs)
        settings = _find_settings((*args, *kwargs.values()))
        if settings:
            try:
                self.esalign_population = Population.load(self, settings["basis"], settings["mode"])
            except (Unsupported, AttributeError) as problem:
                self.esalign_population = str(problem)
        return model

    setattr(create_lora_manager, SETTINGS, True)
    manager_class.create_lora_manager = create_lora_manager


def _find_settings(arguments: tuple[Any, ...]) -> dict[str, str] | None:
    """Return what the backend left in the configuration, None in an engine that is not the backend's."""
    from vllm.config import get_current_vllm_config

    config = next((a for a in arguments if hasattr(a, "additional_config")), None) or get_current_vllm_config()
    settings = config.additional_config
    return settings.get(SETTINGS) if isinstance(settings, dict) else None


def _find_device_of_packed_weights() -> None:
    """Let LoRA layers stand on INT8 layers on CPUs: oneDNN packs away the weight whose device vLLM asks for."""
    base_linear: Any = import_module("vllm.lora.layers.base_linear")
    original = base_linear._get_lora_device  # noqa: SLF001  (no public name)
    if getattr(original, SETTINGS, False):
        return

    def get_device(layer: Any) -> Any:
        if getattr(layer, "weight", ...) is not None:
            return original(layer)
        import torch

        return next((tensor.device for tensor in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))

    setattr(get_device, SETTINGS, True)
    base_linear._get_lora_device = get_device  # noqa: SLF001


def _count_ranks_eagerly() -> None:
    """Spare scoring on CPUs 11 seconds of compiling a function that counts ranks, which nobody reads."""
    sampler: Any = import_module("vllm.v1.sample.sampler")
    compiled = getattr(sampler, "batched_count_greater_than", None)
    eager = getattr(compiled, "_torchdynamo_orig_callable", None)
    if eager is not None:
        sampler.batched_count_greater_than = eager


def _spare_generators() -> None:
    """Let seeded prompts be read in pieces on CPUs.

    Each piece gives a sample, and all but the last are discarded. vLLM takes their draws back by a generator's offset,
    which generators of CPUs lack, and dies: there, a sample to be discarded does not draw from its generator.
    """
    runner: Any = import_module("vllm.v1.worker.gpu_model_runner").GPUModelRunner
    original = runner.sample_tokens
    if getattr(original, SETTINGS, False):
        return

    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        discarded = self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0]
        spared = {row: generators.pop(row) for row in map(int, discarded) if row in generators}
        try:
            return original(self, *args, **kwargs)
        finally:
            generators.update(spared)

    setattr(sample_tokens, SETTINGS, True)
    runner.sample_tokens = sample_tokens


prepare_worker()
