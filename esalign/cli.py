"""The command line: the only code that prints or exits."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from esalign.errors import ConfigError, EsalignError, EsalignWarning

USER_ERROR, INTERRUPTED = 2, 130
ANY = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    name="esalign",
    help="Align language models without gradients.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

OwnConfig = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG.yaml ... [section.key=value ...]",
        help="YAML files, the later over the earlier, and single values over them.",
    ),
]
Config = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG.yaml ...] [section.key=value ...]",
        help="YAML files, the later over the earlier, and single values over them. Neither files nor model.path: the "
        "embedded quickstart.",
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as runs/quickstart.")]


def main() -> None:
    """Run the command line. Mistakes of the user end in one line and exit code 2, never in a traceback."""
    _be_quiet()
    try:
        app()
    except EsalignError as error:
        _fail(str(error))
    except OSError as error:  # a full disk, a folder without permission
        where = f" '{error.filename}'" if error.filename else ""
        _fail(_with_notes(f"{error.strerror or error}{where}", error))
    except MemoryError as error:
        advice = "use a smaller population, fewer problems or a smaller model"
        _fail(_with_notes(f"out of memory ({error or 'no details'}): {advice}", error))


def _with_notes(text: str, error: BaseException) -> str:
    """Return text with what was noted on an error, such as that a run can go on."""
    return "; ".join([text, *getattr(error, "__notes__", ())])


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"esalign {version('esalign')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Align language models without gradients."""


@app.command(context_settings=ANY)
def run(
    config: Config = None,
    backend: Annotated[str | None, typer.Option(help="Engine: torch, vllm, llama-cpp or a plug-in's name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest run of this name.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Judge the start, run one generation, show the plan, and stop.")
    ] = False,
) -> None:
    """Align a model: evolve the singular values of its LoRA adapter towards reward."""
    from esalign.commands.align import align, plan
    from esalign.report import terminal

    settings = _read_run_config(config or [], backend)
    console = _console()
    if dry_run:
        with console.status("checking data, rewards and engine"):
            plan_of_run = plan(settings)
        terminal.show_plan(console, plan_of_run)
        return
    with terminal.make_reporter(console) as reporter, _first_interrupt(reporter) as interrupts:
        outcome = align(settings, reporter=reporter, resume=resume, interrupts=interrupts)
    _show_outcome(console, outcome)


@app.command(context_settings=ANY)
def probe(
    config: Config = None,
    backend: Annotated[str | None, typer.Option(help="Engine: torch, vllm, llama-cpp or a plug-in's name.")] = None,
    output: Annotated[Path | None, typer.Option(help="New file for what was found, as JSON.")] = None,
) -> None:
    """Before a run: measure what candidates of several step sizes earn, and propose sigma, prompts and population."""
    from esalign.commands.probe import probe as probe_run
    from esalign.report import terminal

    settings = _read_run_config(config or [], backend)
    console = _console()
    with console.status("checking data, rewards and engine") as status:
        probed = probe_run(
            settings,
            output=output,
            progress=lambda done, total: status.update(f"probing: {done:,} of {total:,} completions"),
        )
    terminal.show_probe(console, probed)


@app.command(context_settings=ANY)
def sft(config: OwnConfig = None) -> None:
    """Make a warm start: train a LoRA adapter on a few demonstrations, the only step with gradients."""
    from esalign.commands.sft import warm_start
    from esalign.config.reading import load_config
    from esalign.config.sft import SftConfig

    files, overrides = split_arguments(config or [])
    if not files:
        raise ConfigError("esalign sft needs a configuration with model, out and data: see docs/sft.md")
    console = _console()
    with console.status("training") as status:
        summary = warm_start(
            load_config(files, overrides, schema=SftConfig),
            on_step=lambda step, loss: status.update(f"training: step {step}, loss {loss:.3f}"),
        )
    for note in summary.notes:
        console.print(f"{note.kind:<10} {note.text}", markup=False)
    console.print(f"adapter    {summary.adapter}")
    console.print(
        f"loss       {summary.final_loss:.3f} at the end, {summary.loss:.3f} on average, {summary.steps} steps"
    )
    console.print(f"cost       {summary.tokens:,} tokens of {summary.examples} demonstrations, {summary.seconds:.0f} s")


@app.command(context_settings=ANY)
def distill(
    config: OwnConfig = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest run of this name.")] = False,
) -> None:
    """Distil a teacher into a student on-policy, early rollouts drawn from a trust region between the two (TRB)."""
    from esalign.commands.distill import run_distill
    from esalign.config.distill import DistillConfig
    from esalign.config.reading import load_config
    from esalign.report import terminal, words

    files, overrides = split_arguments(config or [])
    if not files:
        raise ConfigError(
            "esalign distill needs a configuration with student, teacher and data: see docs/distillation.md"
        )
    settings = load_config(files, overrides, schema=DistillConfig)
    console = _console()
    with terminal.make_reporter(console) as reporter, _first_interrupt(reporter) as interrupts:
        outcome = run_distill(settings, reporter=reporter, resume=resume, interrupts=interrupts)
    _show_outcome(console, outcome, words=words.DISTILLATION)


@app.command(name="eval", context_settings=ANY)
def evaluate(
    config: Config = None,
    *,
    backend: Annotated[str | None, typer.Option(help="Engine: torch, vllm, llama-cpp or a plug-in's name.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapter to judge beside the start; may be given several times.")
    ] = None,
    no_adapter: Annotated[
        bool, typer.Option("--no-adapter", help="The start is the base model alone, not the configuration's adapter.")
    ] = False,
    split: Annotated[str, typer.Option(help="Problems to judge on: test, validation or train.")] = "test",
    samples: Annotated[int, typer.Option(min=1, help="Completions of each problem, for pass@k and majority vote.")] = 1,
    by: Annotated[list[str] | None, typer.Option(help="Column for a table of its own, such as subject.")] = None,
    output: Annotated[Path | None, typer.Option(help="New file for all completions, as JSON lines.")] = None,
) -> None:
    """Judge a model, and adapters beside it, on held-out problems, with 95 % intervals."""
    from esalign.commands.evaluate import judge
    from esalign.report import terminal

    settings = _read_run_config(config or [], backend)
    console = _console()
    with console.status(f"reading the {split} problems") as status:
        judged = judge(
            settings,
            start=None if no_adapter else settings.model.adapter,
            adapters=tuple(dict.fromkeys(adapter or ())),
            split=split,
            samples=samples,
            by=by or (),
            output=output,
            progress=lambda text, done, total: status.update(f"{text}: {done:,} of {total:,}" if total else text),
        )
    terminal.show_judged(console, judged, by=by or (), max_tokens=settings.sampling.max_tokens)
    if output is not None:
        console.print(f"completions  {output}", markup=False, soft_wrap=True)


@app.command()
def export(
    folder: RunFolder,
    merged: Annotated[Path | None, typer.Option(help="Write base model and adapter as one model.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="Write the adapter for llama.cpp.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Copy the PEFT adapter.")] = None,
) -> None:
    """Write what a run found in another form, and check it there."""
    from esalign.commands.export import export_run

    if not (merged or gguf or adapter):
        raise ConfigError("nothing to export: give --merged, --gguf or --adapter with a path")
    for line in export_run(folder, merged=merged, gguf=gguf, adapter=adapter):
        _console().print(line)


@app.command()
def report(folder: RunFolder) -> None:
    """Write a run's report.html again."""
    from esalign.report.page import write_report

    _console().print(f"report: {write_report(folder)}")


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("esalign.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
) -> None:
    """Write a commented configuration to start from."""
    from esalign.config.reference import commented_config
    from esalign.files import write_atomically

    if not file.parent.is_dir():
        raise ConfigError(f"there is no folder '{file.parent}' to write '{file.name}' to")
    if file.exists() and not force:
        raise ConfigError(f"'{file}' exists: name another file, or use --force")
    write_atomically(file, commented_config(file.stem).encode())
    _console().print(f"wrote {file}: edit model, data and rewards, then `esalign run {file} --dry-run`")


@app.command()
def doctor() -> None:
    """Show what is installed, what is missing, and how to mend it; fit to paste into a bug report."""
    from esalign.commands.doctor import examine

    for line in examine():
        print(line)  # noqa: T201  (plain text, to be pasted)


def _show_outcome(console: Any, outcome: Any, **options: Any) -> None:
    """Print how a run ended; one that was interrupted ends with the exit code of an interrupt."""
    from esalign.report import terminal

    if outcome.result is None:
        console.print(f"interrupted, and saved: go on with --resume ({outcome.folder})")
        raise typer.Exit(INTERRUPTED)
    saved = outcome.saved.name
    terminal.show_result(console, outcome.result, outcome.verification, outcome.folder, saved=saved, **options)


def _read_run_config(arguments: Sequence[str], backend: str | None) -> Any:
    from esalign.assets import asset
    from esalign.config.reading import load_config
    from esalign.config.run import RunConfig

    files, overrides = split_arguments(arguments)
    if backend:
        overrides.append(f"backend.name={backend}")
    own_model = any(override.startswith("model.path=") for override in overrides)
    quickstart = [] if own_model else [str(asset("quickstart.yaml"))]
    return load_config(files or quickstart, overrides, schema=RunConfig)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (files, overrides) of ``file.yaml a.b=value --a.b=value --a.b value``.

    Raises:
        ConfigError: an option without a value, or one that does not exist.
    """
    files: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            (overrides if "=" in argument else files).append(argument)
            continue
        key, sign, value = argument.lstrip("-").partition("=")
        if "." not in key:
            raise ConfigError(f"no option {argument!r}: see --help; configuration keys are written section.key=value")
        if not sign:
            value = next(rest, "")
            if not value:
                raise ConfigError(f"option {argument!r} needs a value: --section.key value")
        overrides.append(f"{key}={value}")
    return files, overrides


@contextmanager
def _first_interrupt(reporter: Any) -> Iterator[list[int]]:
    """Collect the first Ctrl-C in a list, so that the generation under way is finished; the second one stops."""
    seen: list[int] = []

    def on_interrupt(number: int, _frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        reporter.stage("finishing what is under way; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield seen
    except KeyboardInterrupt as error:  # typer would exit without a word
        print(_with_notes("stopped", error), file=sys.stderr)  # noqa: T201
        raise typer.Exit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGINT, before)


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def _be_quiet() -> None:
    """Keep the libraries' progress bars, advice and warnings off the user's terminal; our own are shown in one line."""
    for variable in (
        "TQDM_DISABLE",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_DATASETS_DISABLE_PROGRESS_BARS",
        "HF_HUB_DISABLE_TELEMETRY",
    ):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name in ("torchao", "torch.utils._pytree"):  # at import: kernels for other machines, deprecations of its own
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", EsalignWarning)
        warnings.showwarning = cast("Any", _show_warning)


def _show_warning(message: Warning | str, *_where: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)  # noqa: T201


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
