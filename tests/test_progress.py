"""What a run says about its own memory."""

import subprocess
import sys

import numpy as np
import pytest

CHILD = "from esalign.run.progress import peak_memory; print(peak_memory()['peak_rss_mib'])"


def peak_of_child():
    return float(subprocess.run([sys.executable, "-c", CHILD], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count the parent's memory, too")
def test_peak_memory_is_the_process_own_however_large_the_one_that_started_it():
    small = peak_of_child()
    held = np.ones(400 * 2**20 // 8)  # 400 MiB
    assert peak_of_child() < small + 100
    assert held.all()
