"""The command line's own manners: version, help, completion, and a start that costs little."""

import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from esalign.cli import app


def call(*arguments, **environment):
    return CliRunner().invoke(app, arguments, prog_name="esalign", env={"COLUMNS": "100", **environment})


def test_version_is_the_installed_one():
    done = call("--version")
    assert (done.exit_code, done.stdout) == (0, f"esalign {version('esalign')}\n")


def test_python_m_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "esalign", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"esalign {version('esalign')}\n"


def test_help_names_every_command_and_what_completes_them():
    done = call("--help")
    assert done.exit_code == 0
    for word in ("run", "sft", "distill", "eval", "export", "report", "init", "doctor", "--version"):
        assert word in done.stdout
    assert "--show-completion" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_commands(shell):
    """As the shell's own hook asks for them."""
    variables = {
        "bash": {"COMP_WORDS": "esalign d", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "esalign d"},
        "fish": {"_TYPER_COMPLETE_ARGS": "esalign d", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    done = call(_ESALIGN_COMPLETE=f"complete_{shell}", **variables)
    assert "distill" in done.stdout
    assert "doctor" in done.stdout
    assert "export" not in done.stdout


def test_import_takes_a_fraction_of_a_second():
    """Least of five, in processor time, which does not count who else uses the machine."""
    code = "import time; start = time.process_time(); import esalign, esalign.cli; print(time.process_time() - start)"
    command = [sys.executable, "-c", code]
    times = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    assert min(times) < 0.3
