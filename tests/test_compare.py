"""The baselines of the comparison do what their names say: a wrong baseline would flatter ESSA."""

import importlib.util
import itertools
import json
import sys
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from comparing import FOLDER, comparison  # noqa: F401 - a fixture of every test

from esalign.assets import asset
from esalign.commands.build import load_splits
from esalign.data.splits import problem_key
from esalign.space import SvdLora


@pytest.fixture
def space():
    return SvdLora.from_pretrained(asset("embedded/adapter"))


@pytest.fixture
def written(space):
    from searching import WrittenBackend

    from esalign.config.reading import load_config
    from esalign.config.run import RunConfig

    config = load_config([asset("quickstart.yaml")], ["backend.device=cpu"], schema=RunConfig)
    return WrittenBackend(config, space.adapter)


@pytest.fixture
def command(monkeypatch):
    """The command line of the comparison, in this process."""
    spec = importlib.util.spec_from_file_location("compare_command", FOLDER / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_command", module)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare", *arguments])
        module.main()

    return run


def test_every_row_is_a_valid_configuration():
    from problems import TASKS
    from rows import ROWS, SAME

    from esalign.config.reading import load_config
    from esalign.config.run import RunConfig

    for task, row in itertools.product(TASKS.values(), ROWS.values()):
        load_config([asset("quickstart.yaml")], [*SAME, *task.overrides, *row.overrides], schema=RunConfig)


@pytest.mark.parametrize("task", ["countdown", "chain-sum"])
def test_the_problems_of_a_task_are_posed_once_and_told_apart_from_its_probe(task, tmp_path):
    from rows import ROWS, make_config

    config, other = (make_config(ROWS["start"], tmp_path, task=task, seed=seed) for seed in (0, 1))
    keys = [{problem_key(e) for e in part.examples} for part in attrgetter("train", "validation")(load_splits(config))]
    tests = {problem_key(example) for example in load_splits(other).test.examples}
    assert [len(part) for part in (*keys, tests)] == [1200, 400, 1000]
    assert not tests & (keys[0] | keys[1])
    posed = json.loads(Path(config.data.source).read_text().splitlines()[0])["metadata"]["source_dataset"]
    assert config.probe.source not in ("", f"reasoning-gym:{posed}")
    before = Path(config.data.source).stat().st_mtime_ns
    make_config(ROWS["start"], tmp_path, task=task)
    assert Path(config.data.source).stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_task_that_is_learnt_starts_from_an_adapter_of_its_own_that_names_numbers_of_the_question(tmp_path):
    from contextlib import ExitStack

    from judging import Judge
    from rows import ROWS, make_config

    config = make_config(ROWS["start"], tmp_path, task="largest")
    assert Path(str(config.model.adapter)).is_relative_to(tmp_path)
    row = json.loads(Path(config.data.source).read_text().splitlines()[0])
    numbers = row["question"].removeprefix("Largest of ").removesuffix(":").split(", ")
    assert max(numbers, key=int) == row["answer"]
    with ExitStack() as closing:
        judge = Judge(config, str(config.model.adapter), closing)
        assert 0.02 < judge.validate(None)["greedy"] < 0.25  # chance, were the form all that it knew, is 1/4
        pass_at = list(judge.pass_at(None).values())
    assert len(pass_at) == 5
    assert pass_at == sorted(pass_at)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["defaults", "surrogate", "raw-lora"])
def test_a_row_trains_and_leaves_what_it_found(name, tmp_path):
    from meter import Meter
    from rows import ROWS, make_config
    from searching import train_raw_lora, train_search

    meter = Meter(0.01, tmp_path / "work")
    small = ("fitness.prompts=4", "optimizer.population=4", "sampling.max_tokens=8")
    config = make_config(ROWS[name], tmp_path, extra=small)
    (train_raw_lora if name == "raw-lora" else train_search)(config, meter)
    assert meter.steps == 1
    assert SvdLora.from_pretrained(tmp_path / "work" / "point1" / "adapter").dim == 256


def test_grpo_on_singular_values_moves_nothing_else_and_in_the_units_of_the_space(space):
    pytest.importorskip("trl")
    import torch
    from grpo import restrict
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(asset("embedded/model"))
    model = PeftModel.from_pretrained(base, str(asset("embedded/adapter")), is_trainable=True)
    offsets = restrict(model, space)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == space.dim
    vector = np.random.default_rng(0).normal(size=space.dim)
    with torch.no_grad():
        for part in offsets:
            part.x.copy_(torch.from_numpy(vector[part.start : part.start + len(part.x)]))
    for module in space.fold(vector).modules:
        layer = model.get_submodule(f"base_model.model.{module.name}")
        np.testing.assert_allclose(layer.lora_A["default"].weight.detach().numpy(), module.A, atol=1e-5)
        np.testing.assert_allclose(layer.lora_B["default"].weight.detach().numpy(), module.B, atol=1e-5)


def test_raw_factors_at_zero_are_the_start_and_move_in_their_own_units(space):
    from searching import RawLora

    raw = RawLora(space.adapter)
    unmoved, moved = raw.adapt(np.zeros(raw.dim)), raw.adapt(np.ones(raw.dim))
    for start, zero, one in zip(space.adapter.modules, unmoved.modules, moved.modules, strict=True):
        np.testing.assert_array_equal(zero.A, start.A)
        np.testing.assert_allclose(one.B - start.B, np.sqrt(np.mean(start.B**2)), rtol=1e-4)


def test_written_weights_answer_as_the_adapter_does(space, written):
    from esalign import Sampling, load_backend
    from esalign.data import load_examples

    vector = np.random.default_rng(0).normal(scale=0.3, size=space.dim)
    prompts = [example.prompt for example in load_examples("reasoning-gym:countdown", size=8)]
    engine = load_backend("torch", model=str(asset("embedded/model")), space=space, dtype="float32", device="cpu")
    wanted = engine.generate(vector[None], prompts, Sampling(max_tokens=16))
    written.write = lambda candidate: written.write_adapter(space.fold(candidate))
    found = written.generate(vector[None], prompts, Sampling(max_tokens=16))
    assert [answer.text for answer in found[0]] == [answer.text for answer in wanted[0]]


def test_full_parameter_evolution_goes_uphill_and_leaves_no_noise_behind(written):
    from searching import SeededEs

    weights = [parameter.data for parameter in written.model.parameters()]
    start = [weight.clone() for weight in weights]
    search = SeededEs(weights, sigma=1e-3, step=1e-3, members=64, seed=0)
    candidates = search.ask()
    search.write(candidates[0])
    assert not all((weight == before).all() for weight, before in zip(weights, start, strict=True))
    search.restore()
    assert all((weight == before).all() for weight, before in zip(weights, start, strict=True))
    fitness = []
    for candidate in candidates:
        search.write(candidate)
        fitness.append(float(weights[0].sum()))
    search.tell(candidates, np.array(fitness))
    search.restore()
    assert float(weights[0].sum()) > float(start[0].sum())


def test_cost_to_reach_lies_between_snapshots():
    from results import cost_to_reach

    costs, scores = np.array([0.0, 10.0, 20.0]), np.array([0.5, 0.6, 0.8])
    assert cost_to_reach(costs, scores, 0.7) == pytest.approx(15.0)
    assert cost_to_reach(costs, scores, 0.9) is None


def test_leads_are_taken_by_seed_and_their_interval_is_over_runs(tmp_path):
    from results import leads, over_runs, read_results

    for seed, scores in enumerate(("0111", "0011", "1111")):
        write_result(tmp_path, "start", seed, "0001", [])
        write_result(tmp_path, "defaults", seed, scores, [POINT])
    results = read_results(tmp_path)
    ahead = leads(results["defaults"], results["start"][:2], "greedy")
    assert ahead == {0: 0.5, 1: 0.25}
    both = over_runs([*ahead.values(), 0.75])
    assert both.mean == 0.5
    assert both.high - both.mean == pytest.approx(4.303 * 0.25 / 3**0.5)
    assert over_runs([0.5]).low == -np.inf


def test_curves_of_rows_with_differing_seeds_begin_at_their_own_start(tmp_path):
    from results import curve, read_results

    write_result(tmp_path, "start", 0, "0001", [])
    write_result(tmp_path, "start", 1, "0011", [])
    write_result(tmp_path, "defaults", 1, "0111", [POINT])
    results = read_results(tmp_path)
    costs, gains = curve(results["defaults"], results["start"], "greedy", "processor seconds")
    assert (costs.tolist(), gains.tolist()) == ([0.0, 8.0], [0.0, 0.25])
    first = {**POINT, "test": {"greedy": {"mean": 0.75, "count": 2}}}  # of which the start has none right
    write_result(tmp_path, "defaults", 1, "0111", [first])
    assert curve(read_results(tmp_path)["defaults"], results["start"], "greedy", "processor seconds")[1][1] == 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("grpo", "foo=1"), "'foo=1' is no setting of grpo, expected section.key=value or lr=number or group=number"),
        (("grpo", "lr=much"), "'lr=much' is no setting of grpo"),
        (("grpo", "lr"), "'lr' is no setting of grpo"),
        (("defaults", "lr=1"), "'lr=1' is no setting of defaults, expected section.key=value behind a row"),
        (("table", "optimizer.sigma=1"), "is no setting of table"),
        (("defaults", "--budget", "0"), "expected above 0 s"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(arguments, message, command, capsys):
    with pytest.raises(SystemExit, match="2"):
        command(*arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_results_of_another_budget_are_refused_and_not_taken_for_those_of_now(command, tmp_path, capsys):
    (tmp_path / "countdown").mkdir()
    write_result(tmp_path / "countdown", "defaults", 0, "0011" * 25, [POINT])
    command("defaults", "--budget", "1", "--out", str(tmp_path))
    assert "done before" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has a budget of 1 s, not 2: give another --out"):
        command("defaults", "--budget", "2", "--out", str(tmp_path))


def test_variants_have_the_name_of_all_that_they_set():
    from rows import ROWS, label

    both = [label(ROWS["defaults"], (f"{section}.temperature=1",)) for section in ("sampling", "fitness.options")]
    assert both == ["defaults+sampling.temperature=1", "defaults+fitness.options.temperature=1"]


@pytest.mark.slow
def test_by_validation_the_last_snapshot_is_judged_on_validation_problems(command, tmp_path):
    small = ("fitness.prompts=4", "optimizer.population=4", "sampling.max_tokens=8", "space.tie=8")
    command("defaults", *small, "--budget", "0.01", "--by-validation", "--out", str(tmp_path))
    (file,) = (tmp_path / "choosing" / "countdown").glob("defaults*.seed0.jsonl")
    head, *points, best = map(json.loads, file.read_text().splitlines())
    assert head["extra"] == list(small)
    assert best["point"] == len(points) - 1
    assert len(best["scores"]["greedy"]) * 4 == len(best["scores"]["sampled"]) == 400 * 4
    assert best["greedy"]["mean"] == pytest.approx(best["validation"]["greedy"], abs=1e-4)


def test_meter_counts_training_and_not_the_saving(tmp_path):
    from meter import Meter, processor_seconds

    def busy(seconds):
        end = processor_seconds() + seconds
        while processor_seconds() < end:
            pass

    meter = Meter(0.2, tmp_path)
    meter.begin()
    while not meter.over:
        busy(0.05)
        meter.step(lambda folder: busy(0.3), generated=7)
    assert 0.2 <= meter.seconds < 0.4
    assert meter.tokens["generated"] == 7 * meter.steps


POINT = {
    "steps": 2,
    "processor_seconds": 8.0,
    "tokens": {"prompt": 0, "generated": 100, "scored": 0, "trained": 0},
    "test": {name: {"mean": 0.75, "count": 100} for name in ("greedy", "sampled")},
}


def write_result(folder, label, seed, scores, points, **more):
    head = {"row": label, "label": label, "seed": seed, "extra": [], "budget": 1.0, "steps": 2, "parts": {}}
    head |= {"loaded_mib": 1.0, "peak_rss_mib": 2.0}
    best = {"validation": {"greedy": 0.5, "sampled": 0.5}, "kl": 0.0, "probe_scores": scores}
    best |= {"scores": dict.fromkeys(("greedy", "sampled", "at 0.7"), scores), "pass_at": {"1": 0.25, "2": 0.5}}
    best |= {"greedy": {"mean": 0.5}, "sampled": {"mean": 0.5}} | more
    lines = "".join(json.dumps(line) + "\n" for line in (head, *points, best))
    (folder / f"{label}.seed{seed}.jsonl").write_text(lines)


def test_tables_pair_problems_within_a_seed_and_plots_are_drawn(tmp_path, capsys):
    from plots import draw
    from tables import print_tables

    for seed in (0, 1):
        write_result(tmp_path, "start", seed, "0011" * 25, [])
        write_result(tmp_path, "cma-es", seed, "0111" * 25, [POINT])
        write_result(tmp_path, "defaults", seed, "1110" * 25, [POINT])
    print_tables(tmp_path)
    printed = capsys.readouterr().out
    assert "| ESSA, CMA-ES (diagonal) | 2 | 0.750 | +0.250 [" in printed
    assert "| ESSA, CMA-ES (diagonal) | 2 | 4 | 6 | 7.2 |" in printed  # half of the gain comes half way to 8 seconds
    assert (
        "| ESSA, nothing set | 0.750 | +0.250 [+0.135, +0.365] | 0.250 | 0.500 | 100 | 50 | 8 | 100 | 184M |" in printed
    )
    lead = (
        "| ESSA, CMA-ES (diagonal) | 2 | greedy | +0.000 [-0.098, +0.098] | +0.000 [+0.000, +0.000] | +0.000, +0.000 |"
    )
    assert lead in printed
    write_result(tmp_path, "defaults", 7, "1110" * 25, [POINT])  # a seed without a start
    print_tables(tmp_path)
    draw(tmp_path)
    assert {file.name for file in tmp_path.glob("*.png")} == {"curves_greedy.png", "curves_sampled.png"}


def test_divergence_and_pass_at_k_have_intervals_over_runs(tmp_path, capsys):
    from tables import print_tables

    for seed, (kl, one) in enumerate([(0.1, 0.25), (0.3, 0.75)]):
        write_result(tmp_path, "start", seed, "0011" * 25, [])
        write_result(tmp_path, "defaults", seed, "1110" * 25, [POINT], kl=kl, pass_at={"1": one, "2": 0.5})
    print_tables(tmp_path)
    student = 12.706  # the quantile of one degree of freedom; times the standard errors of (0.1, 0.3) and (0, 0.5)
    of_kl, of_one = (
        f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"
        for mean, half in ((0.2, 0.1 * student), (0.25, 0.25 * student))
    )
    expected = f"{of_kl} | {of_one} | +0.000 [+0.000, +0.000] |"
    assert f"| ESSA, nothing set | 2 | {expected}" in capsys.readouterr().out


def test_how_far_results_went_back_is_told_with_what_they_had_gained(tmp_path, capsys):
    from tables import print_tables

    for seed, (share, greedy) in enumerate([(0.5, 0.75), (1.0, 0.85)]):
        write_result(tmp_path, "start", seed, "0011" * 25, [])
        write_result(tmp_path, "cma-es", seed, "1110" * 25, [POINT])
        whole_way = {"greedy": {"mean": greedy}, "sampled": {"mean": 0.25}}
        write_result(tmp_path, "defaults", seed, "1110" * 25, [POINT], share=share, whole_way=whole_way)
    print_tables(tmp_path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "0.5, 1 |" in line]
    half = 12.706 * 0.05  # the standard error of (0.25, 0.35)
    gains = f"+0.300 [{0.3 - half:+.3f}, {0.3 + half:+.3f}] | -0.250 [-0.250, -0.250]"
    assert line == f"| ESSA, nothing set | 2 | 0.5, 1 | {gains} |"


def test_results_of_before_and_rows_without_a_common_seed_are_left_out_of_what_they_lack(tmp_path, capsys):
    from tables import print_tables

    for seed in (0, 1):
        write_result(tmp_path, "start", seed, "0011" * 25, [])
    write_result(tmp_path, "grpo", 0, "0111" * 25, [POINT])
    write_result(tmp_path, "defaults", 1, "1110" * 25, [POINT])
    file = tmp_path / "grpo.seed0.jsonl"
    *lines, best = map(json.loads, file.read_text().splitlines())
    del best["pass_at"], best["scores"]["at 0.7"]
    file.write_text("".join(json.dumps(line) + "\n" for line in (*lines, best)))
    print_tables(tmp_path)
    printed = capsys.readouterr().out
    assert "| GRPO (TRL), LoRA rank 8 | 1 | 0.750 | +0.250" in printed
    assert "| GRPO (TRL), LoRA rank 8 | 0.750 |" not in printed
    assert "| ESSA, nothing set | 0.750 |" in printed
    assert "GRPO" not in printed.partition("seeds of both")[2].partition("\n\n")[0]


def test_a_task_chooses_a_trainers_options_and_the_command_line_overrides_them():
    from rows import ROWS, make_options

    row = ROWS["grpo"]
    assert make_options(row, "countdown")["lr"] == make_options(row, "largest")["lr"] == 3e-3
    assert make_options(row, "chain-sum") == {"lr": 1e-3, "group": 8}
    assert make_options(row, "chain-sum", ("lr=1e-2",))["lr"] == 1e-2


def test_a_row_that_trains_an_adapter_refuses_to_have_none(tmp_path):
    from problems import start_of
    from rows import ROWS, make_config

    config = make_config(ROWS["grpo"], tmp_path, extra=("model.adapter=",))
    with pytest.raises(SystemExit, match="is empty"):
        start_of(config)


def test_a_folder_without_results_is_named_in_one_line(tmp_path):
    from tables import print_tables

    with pytest.raises(SystemExit, match="holds no trained row"):
        print_tables(tmp_path)
