"""The errors that esalign raises on purpose.

Each says what was got, what was expected and what to do, in one line. Each is also a standard error, so that a caller
who knows nothing of esalign catches what he expects. The command line prints them without a traceback and exits with 2.

    EsalignError
    ├── ConfigError            (ValueError)    the configuration is wrong
    ├── DataError              (ValueError)    prompts or splits cannot be used
    ├── AdapterError           (ValueError)    the LoRA adapter cannot be used
    ├── RewardError            (ValueError)    a reward cannot be loaded, or failed where a run cannot go on
    ├── BackendError           (RuntimeError)  an engine cannot do what was asked
    ├── DistillationError      (ValueError)    student and teacher do not fit, or their numbers are no probabilities
    ├── OptimizerError         (ValueError)    wrong shapes, or fitness that is not finite
    ├── CheckpointError        (ValueError)    a run directory cannot be read or resumed
    └── MissingPackageError    (ImportError)   an optional package is not installed
"""


class EsalignError(Exception):
    """Base of all errors that esalign raises on purpose."""


class EsalignWarning(UserWarning):
    """What a user should know of, though the work goes on: an engine that falls back to a slower way, and the like.

    The command line shows these in one line each, and hides the warnings of all libraries.
    """


class ConfigError(EsalignError, ValueError):
    """The configuration is wrong."""


class DataError(EsalignError, ValueError):
    """Prompts or splits cannot be used."""


class AdapterError(EsalignError, ValueError):
    """The LoRA adapter cannot be used."""


class RewardError(EsalignError, ValueError):
    """A reward cannot be loaded, or failed where a run cannot go on."""


class BackendError(EsalignError, RuntimeError):
    """An engine cannot do what was asked of it."""


class DistillationError(EsalignError, ValueError):
    """Student and teacher do not fit each other, or their numbers are no probabilities."""


class OptimizerError(EsalignError, ValueError):
    """Wrong shapes, or fitness that is not finite."""


class CheckpointError(EsalignError, ValueError):
    """A run directory cannot be read or resumed."""


class MissingPackageError(EsalignError, ImportError):
    """An optional package is not installed.

    Args:
        user: what needs the package, e.g. ``"backend 'vllm'"``.
        package: its name on PyPI.
        extra: the extra of esalign that installs it.
    """

    def __init__(self, user: str, package: str, extra: str) -> None:
        super().__init__(
            f'{user} needs the package {package!r}, which is not installed: pip install "esalign[{extra}]"'
        )
