"""The schema of a cluster: how many engines, what each needs, and what happens when some are missing."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from esalign.config.sections import BackendSection, Section

LEAST = 0.0001  # of a GPU or a core: Ray counts no finer


def _check_gpus(gpus: float) -> float:
    if 0 < gpus < LEAST or (gpus > 1 and gpus % 1):
        raise ValueError(f"expected a whole number of GPUs, or of one GPU a share of at least {LEAST:f}")
    return gpus


Workers = int | Literal["auto"]
Gpus = Annotated[float, Field(ge=0), AfterValidator(_check_gpus)]
Cpus = Annotated[float, Field(ge=LEAST)]


class GroupSection(Section):
    """Workers of one kind."""

    workers: int = Field(ge=1, description="How many.")
    backend: BackendSection | None = Field(
        None, description="Their engine, or its name alone; none, and a dtype that it leaves out: as in backend."
    )
    gpus: Gpus | None = Field(None, description="GPUs of each.")
    cpus: Cpus = Field(1.0, description="CPU cores of each.")
    label: str | None = Field(None, description="What they are called where workers are named; none: as their engine.")

    @field_validator("backend", mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class ClusterSection(Section):
    """Many engines as one, on any number of machines; see docs/cluster.md."""

    workers: Workers = Field("auto", description="Engines: a number, or auto for all that fit, anew each generation.")
    gpus: Gpus | None = Field(
        None,
        description="GPUs of each; none: 1 where there are GPUs and backend.device is not cpu, else 0.",
    )
    cpus: Cpus = Field(1.0, description="CPU cores of each.")
    groups: tuple[GroupSection, ...] = Field((), description="Workers of several kinds, in place of workers and gpus.")
    address: str | None = Field(
        None,
        description="Ray cluster to join: auto for the one that runs here, an address, or local to start one in this "
        "machine; none: RAY_ADDRESS, which `ray job submit` sets, else local.",
    )
    min_workers: int = Field(1, ge=1, description="With fewer the run waits.")
    wait: float = Field(600.0, gt=0, description="Seconds that it waits, loading of engines included, then gives up.")
    limit: float = Field(1800.0, gt=0, description="Seconds that a unit of work may take, then its worker is replaced.")
    unit: int | None = Field(
        None, ge=1, description="Fewest completions of a unit of work; none: 256 where workers have GPUs, else 32."
    )
    cut_for: int | None = Field(
        None,
        ge=1,
        description="Cut the work as for so many workers; none: for those that there are. A fixed number makes results "
        "equal on clusters of any size, bit by bit, with engines that round by batch, too.",
    )

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (type(value) is not int or value < 1):
            raise ValueError("expected auto or a whole number, at least 1 worker")
        return value

    @model_validator(mode="after")
    def _enough_workers(self) -> "ClusterSection":
        if self.groups and (self.workers, self.gpus, self.cpus) != ("auto", None, 1.0):
            raise ValueError("a cluster has groups, or workers with gpus and cpus, not both: say it in each group")
        count = sum(group.workers for group in self.groups) or self.workers
        if isinstance(count, int) and count < self.min_workers:
            raise ValueError(f"a cluster of {count} workers never has min_workers, {self.min_workers}")
        return self
