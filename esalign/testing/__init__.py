"""The contracts of the plugs, for the tests of plug-ins: each is a tuple of claims, functions that assert one thing.

Every claim on an engine takes a `Subject`, every claim on an optimiser what makes one; see `esalign.testing.backend`.
"""

from esalign.testing.backend import CLAIMS as BACKEND_CLAIMS
from esalign.testing.backend import Subject
from esalign.testing.optimizer import CLAIMS as OPTIMIZER_CLAIMS
from esalign.testing.reference import Reference

__all__ = ["BACKEND_CLAIMS", "OPTIMIZER_CLAIMS", "Reference", "Subject"]
