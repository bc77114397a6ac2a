"""Problems that reasoning-gym generates, kept with all that its verifiers need."""

from collections.abc import Mapping
from typing import Any

from esalign.data.rows import Row
from esalign.errors import DataError
from esalign.plugins import did_you_mean

PREFIX = "reasoning-gym:"


def generate_rows(source: str, *, options: Mapping[str, Any], size: int, seed: int, start: int = 0) -> list[Row]:
    """Return a range of the endless series of problems that a task and a seed define.

    Args:
        source: ``reasoning-gym:<task>``.
        options: the task's configuration.
        size: number of problems.
        seed: decides the series. Series of neighbouring seeds share problems, as reasoning-gym adds seed and index.
        start: index of the first problem.

    Returns:
        Rows with the columns question, answer and metadata, which are reasoning-gym's entries.

    Raises:
        DataError: an unknown task or option, or a configuration that the task refuses.
    """
    task = open_task(source, options=options, size=start + size, seed=seed)
    try:
        return [task[index] for index in range(start, start + size)]
    except Exception as error:  # a task may fail in any way when its configuration leaves it no problem to pose
        raise DataError(f"'{source}' cannot generate problems with {dict(options)}: {error}") from error


def open_task(source: str, *, options: Mapping[str, Any], size: int, seed: int) -> Any:
    """Return reasoning-gym's data set of a task."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    name = source.removeprefix(PREFIX)
    if name not in DATASETS:
        raise DataError(f"reasoning-gym has no task {name!r}{did_you_mean(name, DATASETS)}")
    known = [key for key in DATASETS[name][1].__dataclass_fields__ if key not in ("seed", "size")]
    for option in options:
        if option in ("seed", "size"):
            raise DataError(f"data.options.{option} of '{source}': the sizes and the seed of the run decide it")
        if option not in known:
            hint = did_you_mean(option, known)
            raise DataError(f"'{source}' has no option {option!r}{hint}; options: {', '.join(known)}")
    try:
        return reasoning_gym.create_dataset(name, size=size, seed=seed, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise DataError(f"'{source}' refuses the options {dict(options)}: {error}") from error
