"""Libraries come without what nothing here uses, and are whole for everybody else."""

import subprocess
import sys
from importlib.util import find_spec


def test_a_loaded_model_and_cma_es_bring_nothing_that_they_do_not_use():
    """Nor do reasoning-gym's problems; others can import it still."""
    code = """
import sys
sys.modules["torchao"] = None  # where it is installed, transformers imports it, and it the compiler
from esalign import load_backend, make_optimizer, make_space
from esalign.assets import model_path
from esalign.data.gym import generate_rows
from esalign.engines.loading import load_model
from esalign.testing.reference import Reference

def brought(*names):
    print(*(name for name in names if name in sys.modules), sep=",")

space = make_space("base-svd", model=model_path("embedded"), rank=8)
load_backend("torch", model=model_path("embedded"), space=space, device="cpu")
load_model("model", "embedded", "embedded")
Reference(model_path("embedded"), space).complete([0.0] * space.dim, [(5, 6)], 2)
brought("torch._dynamo", "sympy", "torch.distributed.tensor", "sklearn", "pandas", "scipy", "matplotlib")
make_optimizer("cma-es", dim=4, sigma=1.0, population=4, seed=0).ask()
generate_rows("reasoning-gym:countdown", options={}, size=1, seed=0)
brought("scipy.stats", "matplotlib")
import matplotlib.pyplot, scipy.stats, torch._dynamo, torch.distributed
from transformers.masking_utils import TransformGetItemToIndex
from transformers.loss import loss_for_object_detection
from transformers.utils import is_sklearn_available
print(is_sklearn_available(), *loss_for_object_detection.linear_sum_assignment([[2, 1], [1, 2]])[1])
with TransformGetItemToIndex():
    print(torch.distributed.tensor.DTensor.__name__, torch.compile(abs, backend="eager")(torch.tensor(-2.0)).item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", "", f"{find_spec('sklearn') is not None} 1 0", "DTensor 2.0"]


def test_two_threads_may_load_at_once():
    code = """
import logging, sys, threading
import torch, transformers
from esalign.assets import model_path
from esalign.engines.loading import load_tokenizer

threads = [threading.Thread(target=load_tokenizer, args=(model_path("embedded"),)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
utils = transformers.utils
print(utils.is_torch_distributed_available(), logging.getLogger("torchao").level)
torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
print(torch.compile(abs, backend="eager")(torch.tensor(-2.0)).item(), sys.modules["torch._dynamo"].__file__ is not None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True 0", "2.0 True"]
