"""What the optimiser maximises. Each fitness is a plug, found by the entry-point group ``esalign.fitness``."""

from esalign.fitness.parts import FitnessParts

__all__ = ["FitnessParts"]
