"""From a configuration to a cluster."""

from esalign.config.cluster import ClusterSection, GroupSection
from esalign.config.sections import BackendSection
from esalign.engines.cluster.backend import ClusterBackend
from esalign.engines.cluster.engine import Kind
from esalign.protocols import Space
from esalign.registry import BACKENDS, entry_point


def make_cluster(backend: BackendSection, model: str, space: Space | None, section: ClusterSection) -> ClusterBackend:
    """Start the engines that a configuration asks for.

    Args:
        backend: what each engine is, where its group does not say otherwise.
        model: the base model.
        space: the search space.
        section: how many, and where.

    Raises:
        BackendError: there is no cluster, or too few workers come.
        ConfigError: an engine of no known name.
        MissingPackageError: Ray is not installed.
    """
    check_engines(backend, section)
    if section.groups:
        kinds = [
            _kind(group.backend or backend, backend, model, group)
            for group in section.groups
            for _ in range(group.workers)
        ]
    else:
        kinds = [_kind(backend, backend, model, section)]
        kinds *= section.workers if isinstance(section.workers, int) else 1
    return ClusterBackend(kinds, space, section)


def check_engines(backend: BackendSection, section: ClusterSection | None) -> None:
    """Refuse an engine of no known name; to be called before Ray is started.

    Raises:
        ConfigError: there is one.
    """
    groups = section.groups if section is not None else ()
    for name in (backend.name, *(group.backend.name for group in groups if group.backend)):
        entry_point(BACKENDS, name)


def _kind(own: BackendSection, common: BackendSection, model: str, needs: GroupSection | ClusterSection) -> Kind:
    dtype = own.dtype if "dtype" in own.model_fields_set else common.dtype
    label = (needs.label or "") if isinstance(needs, GroupSection) else ""
    return Kind(own.name, model, dtype, own.device, dict(own.options), needs.gpus, needs.cpus, label)
