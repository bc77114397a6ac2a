"""A worker's part of a population: vLLM's LoRA layers found, checked, and filled with candidates.

What is used here is private to vLLM. Every use is checked when the model is loaded; what does not fit raises
`Unsupported`, and the backend falls back to a mode that needs less.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esalign_vllm.basis import SHARED_BASIS, SLOTS
from esalign_vllm.shared_basis import LayerFactors, NoAdapter, SharedBasis, read_basis, table_columns


class Unsupported(Exception):  # noqa: N818  (a finding, which the backend turns into a fallback or an error)
    """This vLLM, or this model in it, lacks what a mode needs."""


@dataclass(frozen=True)
class AdaptedLayer:
    """One of vLLM's LoRA layers with the factors of its parts.

    Args:
        name: the layer's name in vLLM's model.
        module: vLLM's LoRA layer.
        parts: (number of the part, its factors).
    """

    name: str
    module: Any
    parts: tuple[tuple[int, LayerFactors], ...]


class Population:
    """The candidates that a worker holds, by the slots of vLLM's LoRA layers.

    Args:
        worker_manager: vLLM's LoRA manager of this worker.
        factors: the frozen factors by the names of the Hugging Face model.
        mode: ``shared-basis`` or ``slots``.

    Raises:
        Unsupported: a part of vLLM is not as expected.
    """

    def __init__(self, worker_manager: Any, factors: Mapping[str, LayerFactors], mode: str) -> None:
        self.worker_manager = worker_manager
        self.manager = worker_manager._adapter_manager  # noqa: SLF001  (checked by _layers)
        self.mode = mode
        self.slots = int(self.manager.lora_slots)
        self.width = sum(2 * layer.rank for layer in factors.values())
        self.slot_of_id: list[int] = []
        self.layers, self.adapted = find_layers(self.manager, factors)
        if mode == SHARED_BASIS:
            self.table, self.columns = self._install_table()
        else:
            self._check_ranks()

    @classmethod
    def load(cls, worker_manager: Any, file: str, mode: str) -> "Population":
        """Read the factors from a file and install them."""
        return cls(worker_manager, read_basis(Path(file)), mode)

    def _install_table(self) -> tuple[Tensor, Tensor]:
        """Put a stand-in into each LoRA layer. Returns their table, and its columns of a candidate's row."""
        orders = [table_columns([part for _, part in layer.parts]) for layer in self.layers]
        # The row of a candidate has layer after layer of the space; the table has them as vLLM fuses its layers.
        columns = torch.tensor([column for order in orders for column in order], dtype=torch.int64)
        # A row per slot, and one of zeros that index -1 finds; its columns are split among the layers as views.
        table = torch.zeros(self.slots + 1, len(columns), device=self.manager.device)
        shares = table.split([len(order) for order in orders], dim=1)
        for layer, share in zip(self.layers, shares, strict=True):
            module, parts = layer.module, [part for _, part in layer.parts]
            dtype, out = module.lora_b_stacked[0].dtype, sum(module.output_slices)
            module.punica_wrapper = SharedBasis(module.punica_wrapper, share, parts, out=out, dtype=dtype)
            module.punica_wrapper.slots.fill_(-1)  # vLLM leaves it uninitialised, and graphs read past the tokens
        self._silence_others()
        return table, columns

    def _silence_others(self) -> None:
        """Spare layers without an adapter their LoRA work, and all layers the memory of a matrix per slot.

        With a stand-in nothing computes with the stacks, so one slot's memory is shown as that of all.
        """
        adapted = {id(layer.module) for layer in self.layers}
        for module in self.manager.modules.values():
            if id(module) not in adapted:
                module.punica_wrapper = NoAdapter(module.punica_wrapper)
            if hasattr(module, "output_slices"):
                for name in ("lora_a_stacked", "lora_b_stacked"):
                    stacks = getattr(module, name)
                    setattr(module, name, tuple(stack[:1].clone().expand_as(stack) for stack in stacks))

    def _check_ranks(self) -> None:
        for layer in self.layers:
            limit = layer.module.lora_a_stacked[0].shape[2]
            for _, part in layer.parts:
                if part.rank > limit:
                    raise Unsupported(f"rank {part.rank} of {layer.name} is above this engine's limit of {limit}")

    def reserve(self) -> None:
        """Fill every slot with an adapter that is zero and never evicted, ids from 1, so that no file is ever read."""
        from vllm.lora.request import LoRARequest

        identifiers = range(1, self.slots + 1)
        self.manager.remove_all_adapters()
        with self.worker_manager.dummy_lora_cache():
            for number in identifiers:
                self.worker_manager.add_dummy_lora(LoRARequest(f"slot{number}", number, "mem://"), rank=1)
                self.manager.activate_adapter(number)
                self.manager.pin_adapter(number)
        self.slot_of_id = [self.manager.lora_index_to_id.index(number) for number in identifiers]
        if self.mode == SLOTS:
            self._write_down()

    def _write_down(self) -> None:
        """Write the side that all candidates share into every slot, once."""
        for layer in self.layers:
            for number, part in layer.parts:
                stack = layer.module.lora_a_stacked[number]  # (slots, 1, largest rank, in); rows beyond the rank are 0
                stack.zero_()
                stack[:, 0, : part.rank, : part.down.shape[1]] = part.down.to(stack.device, stack.dtype)

    def write(self, raw: bytes, population: int) -> None:
        """Make candidates current: their rows of singular values, float32 of shape (population, width), as bytes."""
        rows = torch.from_numpy(np.frombuffer(raw, dtype=np.float32).reshape(population, self.width).copy())
        slots = torch.tensor(self.slot_of_id[:population])  # candidate i is vLLM's adapter i + 1; (population,)
        if self.mode == SHARED_BASIS:
            self.table[slots.to(self.table.device)] = rows[:, self.columns].to(self.table.device)
            return
        for layer in self.layers:
            for number, part in layer.parts:
                self._write_up(layer.module.lora_b_stacked[number], slots, part, rows)

    def _write_up(self, stack: Tensor, slots: Tensor, part: LayerFactors, rows: Tensor) -> None:
        """Write ``up diag(s_B) core diag(s_A)`` of each candidate into its slot."""
        values_a, values_b = rows[:, part.columns].to(stack.device).split(part.rank, dim=1)  # each (population, rank)
        inner = values_b[:, :, None] * part.core.to(stack.device) * values_a[:, None, :]  # (population, rank, rank)
        matrices = part.up.to(stack.device) @ inner  # (population, out, rank)
        # The stack is (slots, 1, out, largest rank); columns beyond the part's rank meet zeros of the other side.
        stack[slots.to(stack.device), 0, : matrices.shape[1], : part.rank] = matrices.to(stack.dtype)


def find_layers(manager: Any, factors: Mapping[str, LayerFactors]) -> tuple[list[AdaptedLayer], list[str]]:
    """Return the LoRA layers that the factors belong to, and the names of the factors that found theirs.

    A name may find nothing here: with pipeline parallelism its layer is another worker's.

    Raises:
        Unsupported: a layer is of another build or shape than expected.
    """
    known = dict(zip(_rename(manager, list(factors)), factors.items(), strict=True))
    layers, adapted = [], []
    try:
        for name, module in manager.modules.items():
            parent, _, leaf = name.rpartition(".")
            own = [f"{parent}.{part}".lstrip(".") for part in manager.packed_modules_mapping.get(leaf, [leaf])]
            if name in known and name not in own:  # the Hugging Face model has one layer there, too
                held: list[LayerFactors | None] = [*_cut(name, known[name][1], module)]
                own = [name]
            else:
                held = [known[part][1] if part in known else None for part in own]
            if not any(held):
                continue
            layers.append(AdaptedLayer(name, module, tuple(_slice_parts(name, module, held))))
            adapted += [known[part][0] for part in own if part in known]
    except (AttributeError, TypeError, IndexError, ValueError) as error:
        raise Unsupported(f"its LoRA layers are built in another way ({type(error).__name__}: {error})") from error
    return layers, adapted


def _cut(name: str, layer: LayerFactors, module: Any) -> Iterator[LayerFactors]:
    """Yield the factors of the parts that vLLM makes of one layer, as of GLM-4's gate_up_proj: rows of ``up``.

    Raises:
        Unsupported: the parts are not those rows.
    """
    sizes = [size * module.tp_size for size in module.output_slices]
    if sum(sizes) != len(layer.up):
        raise Unsupported(f"{name} has parts of {sizes} features, which are not the {len(layer.up)} of the adapter's")
    for rows in layer.up.split(sizes):
        yield replace(layer, up=rows)


def _rename(manager: Any, names: list[str]) -> list[str]:
    """Return the names of layers in vLLM's model, where it has others than the Hugging Face model."""
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return names
    mapper = mapper.get_rename_mapper() if hasattr(mapper, "get_rename_mapper") else mapper
    renamed: list[str] = mapper.apply_list(names)
    return renamed if len(renamed) == len(names) else names


def _slice_parts(name: str, module: Any, factors: list[LayerFactors | None]) -> Iterator[tuple[int, LayerFactors]]:
    """Yield the number and the factors of each adapted part of a layer, sliced for this worker.

    Raises:
        Unsupported: the layer's parts, or its shapes, are not those of the factors.
    """
    if len(factors) != module.n_slices or len(module.lora_a_stacked) != module.n_slices:
        raise Unsupported(f"{name} has {module.n_slices} parts, expected {len(factors)}")
    if module.lora_config.fully_sharded_loras:
        raise Unsupported("fully_sharded_loras also splits the rank, over which the singular values run")
    downs, ups = _slice_factors(module, factors)
    offset = 0
    for number, (layer, down, up) in enumerate(zip(factors, downs, ups, strict=True)):
        width, expected = module.output_slices[number], module.lora_a_stacked[number].shape[-1]
        if layer is not None:
            if (up.shape[0], down.shape[1]) != (width, expected):
                raise Unsupported(
                    f"{name} maps {expected} to {width} features, the adapter {down.shape[1]} to {up.shape[0]}"
                )
            yield number, replace(layer, down=down, up=up, offset=offset)
        offset += width


def _slice_factors(module: Any, factors: list[LayerFactors | None]) -> tuple[list[Any], list[Any]]:
    """Return ``down`` and ``up`` of each part, cut by vLLM's own rules under tensor parallelism."""
    downs: list[Any] = [None if layer is None else layer.down for layer in factors]
    ups: list[Any] = [None if layer is None else layer.up for layer in factors]
    if module.tp_size == 1:
        return downs, ups
    if module.n_slices == 1:
        return [module.slice_lora_a(downs[0])], [module.slice_lora_b(ups[0])]
    return module.slice_lora_a(downs), module.slice_lora_b(ups)
