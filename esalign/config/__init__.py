"""Every schema of esalign, strict at every level, and how it is read."""

from typing import TypeAlias

from esalign.config.distill import DistillConfig
from esalign.config.run import RunConfig

Experiment: TypeAlias = RunConfig | DistillConfig
"""The configuration of a run of any kind."""
