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
    for name in dict.fromkeys((backend.name, *(group.backend.name for group in section.groups if group.backend))):
        entry_point(BACKENDS, name)  # before anything starts
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


def _kind(own: BackendSection, common: BackendSection, model: str, needs: GroupSection | ClusterSection) -> Kind:
    dtype = own.dtype if "dtype" in own.model_fields_set else common.dtype
    label = (needs.label or "") if isinstance(needs, GroupSection) else ""
    return Kind(own.name, model, dtype, own.device, dict(own.options), needs.gpus, needs.cpus, label)
