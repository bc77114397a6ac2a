"""Many engines as one: a backend that is made of backends, on any number of machines, by Ray."""

import importlib.metadata
import os
from collections.abc import Iterator

TESTED, OLDEST = "2.60", (2, 40)


def examine() -> Iterator[str]:
    """Yield what `esalign doctor` says of Ray, which is not started for it; nothing where it is not installed."""
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        yield f"!!  ray {version} is older than {OLDEST[0]}.{OLDEST[1]}: pip install --upgrade ray"
    elif not version.startswith(f"{TESTED}."):
        yield f"--  ray {version} was not tested, {TESTED} was"
    address = os.environ.get("RAY_ADDRESS")
    where = f"RAY_ADDRESS, which is {address}" if address else "cluster.address; without one, a cluster in this machine"
    yield f"    a run with `cluster` computes on {where}"
