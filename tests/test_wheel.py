"""The wheel stands alone: installed without the checkout, it runs the quickstart from an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The wheel in a fresh environment, which borrows the installed dependencies, but not the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder)
    installer = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--offline"]
    call(*installer, "--python", folder / "bin" / "python", wheel)
    (packages,) = folder.glob("lib/python*/site-packages")
    borrow(Path(sysconfig.get_path("purelib")), packages)
    return folder


def borrow(installed, packages):
    """Link every installed package that is not esalign: a path file would bring its editable install along."""
    for entry in installed.iterdir():
        if "esalign" not in entry.name and entry.suffix != ".pth" and not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)


def clean(**more):
    """Return the environment's variables without those that could lead back to the checkout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return {**kept, **more}


@pytest.mark.slow
def test_the_wheel_is_imported_from_where_it_was_installed(environment, tmp_path):
    code = "import esalign, esalign_torch; print(esalign.__file__); print(esalign_torch.__file__)"
    printed = call(environment / "bin" / "python", "-c", code, cwd=tmp_path, env=clean())
    assert all(Path(line).is_relative_to(environment) for line in printed.split())


@pytest.mark.slow
def test_the_wheel_runs_two_generations_of_the_quickstart_from_an_empty_folder(environment, tmp_path):
    small = ["run.generations=2", "run.evaluate_every=2", "run.verify_prompts=8", "run.kl_prompts=4"]
    small += ["data.train_size=40", "data.validation_size=16", "data.test_size=16", "probe.size=8"]
    small += ["fitness.prompts=8", "optimizer.population=6", "sampling.max_tokens=24"]
    call(environment / "bin" / "esalign", "run", *small, cwd=tmp_path, env=clean())
    folder = tmp_path / "runs" / "quickstart"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["generation"] for row in rows] == [0, 1, 2]
    assert json.loads((folder / "result.json").read_text())["verification"]["good"]
    assert (folder / "report.html").stat().st_size > 10_000
