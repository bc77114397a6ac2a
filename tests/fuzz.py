"""Tries odd configurations, data files, adapters and completions, thousands of each, and stops at the first failure.

A failure is a traceback (any error that is none of esalign's own), a case that takes long, and an adapter that is read
without a word and that peft reads otherwise. Run all of it, in two processes:

    python tests/fuzz.py --cases 10000
"""

import argparse
import functools
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from esalign.config.distill import DistillConfig
from esalign.config.reading import load_config
from esalign.config.run import RunConfig
from esalign.config.sections import Source
from esalign.config.sft import SftConfig
from esalign.data import load_dataset
from esalign.errors import EsalignError
from esalign.rewards import load_reward
from esalign.space.adapter import Adapter, LoraModule, read_adapter, write_adapter

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 60  # of computing, after which a case hangs; of waiting, ten times as many

texts = st.text(max_size=40) | st.sampled_from(
    ["", "nan", "1e309", "\ud800", "\uff10\uff11", "a.b=c", "{x!r:>9}", "²", "~"]
)
numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 4, 10**400, 1e308])
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=6,
)


@contextmanager
def no_hang():
    """Raise TimeoutError in a case that takes too long."""

    def ring(_number: int, _frame: Any) -> None:
        raise TimeoutError(f"a case took more than {SECONDS} seconds")

    limits = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, 10 * SECONDS))
    before = [signal.signal(number, ring) for number, _, _ in limits]
    for _, timer, seconds in limits:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(limits, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


# --- configurations ---

SECTIONS = ("model", "space", "backend", "data", "rewards", "sampling", "fitness", "optimizer", "run", "scoring")
keys = st.sampled_from(
    [f"{section}.{key}" for section in SECTIONS for key in ("name", "path", "options", "source", "sigma", "seed", "x")]
)
overrides = st.builds(lambda key, value: f"{key}={json.dumps(value)}", keys, values) | st.builds(
    lambda key, text: f"{key}={text}", keys | texts, texts
)


@given(raw=values | st.text() | st.binary(max_size=60), changes=st.lists(overrides, max_size=4), data=st.data())
def configurations(raw: Any, changes: list[str], data: Any) -> None:
    """Read a configuration file and overrides into each schema."""
    schema = data.draw(st.sampled_from([RunConfig, SftConfig, DistillConfig]))
    with tempfile.TemporaryDirectory() as home, no_hang():
        file = Path(home) / "config.yaml"
        content = (
            raw
            if isinstance(raw, bytes)
            else (raw if isinstance(raw, str) else json.dumps(raw)).encode("utf-8", "replace")
        )
        file.write_bytes(content)
        try:
            load_config([file], changes, schema=schema)
        except EsalignError as error:
            one_line(error)


def one_line(error: EsalignError) -> None:
    """An error is one line, that a terminal can print."""
    text = str(error)
    assert text.strip(), "an empty error"
    text.encode("utf-8", "backslashreplace")


# --- data ---

rows = st.dictionaries(st.sampled_from(["prompt", "answer", "question", "messages"]) | texts, values, max_size=4)
contents = st.one_of(
    st.binary(max_size=80),
    st.lists(rows, max_size=5).map(lambda found: "\n".join(map(json.dumps, found)).encode()),
    st.lists(rows, max_size=5).map(lambda found: json.dumps(found).encode()),
    st.lists(st.lists(texts, max_size=4).map(",".join), max_size=5).map(
        lambda lines: "\n".join(["prompt,answer", *lines]).encode("utf-8", "replace")
    ),
)


@given(
    content=contents,
    ending=st.sampled_from(["jsonl", "json", "csv", "parquet"]),
    template=st.none() | texts,
    system=st.none() | texts,
)
def data_files(content: bytes, ending: str, template: str | None, system: str | None) -> None:
    """Read a data file, with a template and a system prompt, as problems."""
    with tempfile.TemporaryDirectory() as home, no_hang():
        file = Path(home) / f"rows.{ending}"
        file.write_bytes(content)
        try:
            load_dataset(Source(source=str(file), template=template, system_prompt=system))
        except EsalignError as error:
            one_line(error)


# --- completions ---

pieces = st.sampled_from(
    [
        "\\boxed{",
        "}",
        "{",
        "$",
        "\\frac",
        "12",
        "-3",
        ".5",
        "1e9",
        "^",
        "(",
        ")",
        "answer is",
        "####",
        "**",
        ",",
        "\\sqrt",
        " ",
        *["\n", "x", "=", "/", "%", "\\text{", "9" * 50, "2^{", "!", "\u2212", "½", "\\cdot", "\ud800", "10^10^10"],
    ]
)
completions_ = st.lists(pieces | texts, max_size=12).map("".join)


reward_named = functools.cache(load_reward)  # finding a name reads the entry points of all that is installed: 0.1 s


@given(written=st.lists(completions_, min_size=1, max_size=3), answer=completions_ | values)
def completions(written: list[str], answer: Any) -> None:
    """Score completions against an answer by the rewards that compare text."""
    with no_hang():
        for name in ("math", "exact-match"):
            try:
                rewards = reward_named(name)(["p"] * len(written), written, answer=[answer] * len(written))
            except (EsalignError, ValueError) as error:
                if not isinstance(error, EsalignError) and "no mathematics" not in str(error):
                    raise
                continue
            assert all(one is None or 0.0 <= one <= 1.0 for one in rewards), (name, rewards)


# --- adapters ---

LAYERS = [f"model.layers.{layer}.self_attn.{name}" for layer in (0, 10) for name in ("q_proj", "k_proj")]
GOOD = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj", "k_proj"]}
STEERING = {
    "r": st.integers(-1, 4) | scalars,
    "lora_alpha": numbers | scalars,
    "rank_pattern": st.dictionaries(st.sampled_from(["q_proj", "0.*k_proj", "(", *LAYERS]), st.integers(0, 3)) | values,
    "alpha_pattern": st.dictionaries(st.sampled_from(["q_proj", "k", ".*", "^model", *LAYERS]), numbers) | values,
    "target_modules": st.sampled_from(
        [["q_proj"], "q_proj", r".*\.q_proj", "all-linear", LAYERS, ["proj"], r".*[qk]_proj"]
    )
    | values,
    "exclude_modules": st.sampled_from([["q_proj"], r".*layers\.0\..*", []]) | values,
    "layers_to_transform": st.sampled_from([[0], 0, [0, 10], 10, []]) | values,
    "layers_pattern": st.sampled_from(["layers", ["layers"], "h", ["h", "layers"], "("]) | values,
    "use_rslora": st.booleans() | scalars,
    "init_lora_weights": st.sampled_from(["gaussian", "pissa", "olora", "lora_ga", "corda", "mica", "orthogonal"])
    | scalars,
    "bias": st.sampled_from(["none", "all", "lora_only"]) | scalars,
    "peft_type": st.sampled_from(["LORA", "IA3", "lora"]) | scalars,
    "task_type": st.sampled_from([None, "CAUSAL_LM", "SEQ_CLS"]) | scalars,
    "fan_in_fan_out": scalars,
    "lora_dropout": scalars,
    "use_dora": scalars,
    "modules_to_save": values,
    "eva_config": values,
    "layer_replication": values,
}
config_changes = st.dictionaries(st.sampled_from(sorted(STEERING)) | texts, st.none(), max_size=3).flatmap(
    lambda found: st.fixed_dictionaries({key: STEERING.get(key, values) for key in found})
)
tensor_changes = st.lists(
    st.sampled_from(
        [
            "none",
            "none",
            "none",
            "drop",
            "rename",
            "wrap",
            "transpose",
            "rank",
            "nan",
            "half",
            "double",
            "int",
            "cut",
            "empty",
        ]
    ),
    max_size=2,
)


@given(changes=config_changes, kinds=tensor_changes, number=st.integers(0, 2**16))
def adapters(changes: dict[str, Any], kinds: list[str], number: int) -> None:
    """Read an adapter whose configuration and tensors were changed, and compare it with what peft makes of it."""
    with tempfile.TemporaryDirectory() as home, warnings.catch_warnings(record=True) as said, no_hang():
        warnings.simplefilter("always")
        folder = spoilt_adapter(Path(home) / "adapter", changes, kinds, number)
        try:
            read = read_adapter(folder)
        except EsalignError as error:
            one_line(error)
            return
        told = any("that peft would not find" in str(warning.message) for warning in said)
        meant = {module.name: module.scaling * module.B.astype(np.float64) @ module.A for module in read.modules}
        if not set(meant) <= set(LAYERS) or any(update.shape != (6, 6) for update in meant.values()):
            return  # of another model, which engines refuse
        check_same(meant, read_by_peft(write_adapter(read, Path(home) / "again")), "what was written")
        found = None if told else read_by_peft(folder)
        if isinstance(found, dict):
            check_same(meant, found, "the adapter itself")


def spoilt_adapter(folder: Path, changes: dict[str, Any], kinds: list[str], number: int) -> Path:
    """Write an adapter with a changed configuration and changed tensors."""
    from safetensors.numpy import load_file, save_file

    rng = np.random.default_rng(number)
    modules = tuple(
        LoraModule(name, *(rng.standard_normal(shape).astype(np.float32) for shape in ((2, 6), (6, 2))), 2.0)
        for name in LAYERS
    )
    write_adapter(Adapter(GOOD, modules), folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    for kind in kinds:
        name = sorted(tensors)[int(rng.integers(len(tensors)))]
        tensors = {**tensors, **_changed(name, tensors.pop(name), kind)}
        if not tensors:
            break
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, weights)
    if "cut" in kinds:
        content = weights.read_bytes()
        weights.write_bytes(content[: int(rng.integers(len(content)))])
    return folder


def _changed(name: str, values: Any, kind: str) -> dict[str, Any]:
    kept: dict[str, Callable[[Any], Any]] = {
        "transpose": lambda x: x.T,
        "rank": lambda x: x[:1],
        "nan": lambda x: x * np.nan,
        "half": lambda x: x.astype(np.float16),
        "double": lambda x: x.astype(np.float64),
        "int": lambda x: x.astype(np.int32),
        "empty": lambda x: x[:0],
    }
    if kind == "drop":
        return {}
    if kind in ("rename", "wrap"):
        new = ("q_proj", "v_proj") if kind == "rename" else ("base_model.model.", "base_model.model._orig_mod.")
        return {name.replace(*new): values}
    return {name: kept[kind](values) if kind in kept else values}


def check_same(meant: dict[str, Any], found: Any, label: str) -> None:
    """Hold what esalign means to what peft has; a layer that esalign does not adapt must be unchanged there."""
    assert isinstance(found, dict), f"peft cannot read {label}: {found!r}"
    for name in LAYERS:
        update = meant.get(name, np.zeros((6, 6)))
        np.testing.assert_allclose(found.get(name, 0.0) + np.zeros((6, 6)), update, rtol=1e-4, atol=1e-5, err_msg=label)


def read_by_peft(folder: Path) -> Any:
    """Return the update of each adapted layer as peft has it, or the error with which it refuses the folder."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from peft.utils import load_peft_weights

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in LAYERS:
                place = self
                for part in name.split(".")[:-1]:
                    if not hasattr(place, part):
                        place.add_module(part, torch.nn.Module())
                    place = getattr(place, part)
                place.add_module(name.rpartition(".")[2], torch.nn.Linear(6, 6))

    try:
        model = Model()
        inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), model)
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    except Exception as error:  # noqa: BLE001  (whatever it is, peft does not read the folder)
        return error
    return {
        name: layer.get_delta_weight("default").detach().double().numpy()
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


SHARES = {completions: 0.1, adapters: 0.2, data_files: 0.35, configurations: 0.35}
"""Of all cases; the slow kinds begin."""


def run_share(test: Any, cases: int, number: int) -> None:
    """Run so many cases of one kind, from a seed."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    bounded = settings(max_examples=cases, deadline=None, database=None, suppress_health_check=checks)
    seed(number)(bounded(test))()


def main() -> None:
    """Run all kinds, two at a time, and say how many cases of each held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    wanted = parser.parse_args()
    began = time.perf_counter()
    jobs = [(test, int(wanted.cases * share), wanted.seed) for test, share in SHARES.items()]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(_run_named, [(test.__name__, cases, number) for test, cases, number in jobs], chunksize=1)
    told = ", ".join(f"{cases} {test.__name__}" for test, cases, _ in jobs)
    sys.stdout.write(f"seed {wanted.seed}: {told} held in {time.perf_counter() - began:.0f} s\n")


def _run_named(name: str, cases: int, number: int) -> None:
    if name == "adapters":  # what is slow to import is no case's fault
        import peft  # noqa: F401
    if name == "completions":
        reward_named("math")(["p"], [r"\sqrt{2}"], answer=[r"\sqrt{2}"])
    run_share(globals()[name], cases, number)


if __name__ == "__main__":
    main()
