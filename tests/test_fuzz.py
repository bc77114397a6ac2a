"""A short slice of the fuzzing: odd input ends in an error of one line, or is read as peft reads it."""

import fuzz
import pytest


@pytest.mark.parametrize(
    "kind", [fuzz.configurations, fuzz.data_files, fuzz.completions], ids=lambda kind: kind.__name__
)
def test_odd_input_ends_in_an_error_of_ours(kind):
    fuzz.run_share(kind, 25, 0)


@pytest.mark.slow
def test_odd_adapters_are_read_as_peft_reads_them():
    fuzz.run_share(fuzz.adapters, 100, 0)
