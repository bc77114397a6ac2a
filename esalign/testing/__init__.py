"""For tests: the contracts of the plugs, each a tuple of claims, functions that assert one thing; and a fake engine.

`FakeBackend` is an engine of numpy alone, for tests of whatever needs one.

Every claim on an engine takes a `Subject`, every claim on an optimiser or a space what makes one; see the files of this
folder.
"""

from esalign.testing.backend import CLAIMS as BACKEND_CLAIMS
from esalign.testing.fake import FakeBackend
from esalign.testing.optimizer import CLAIMS as OPTIMIZER_CLAIMS
from esalign.testing.reference import Reference
from esalign.testing.space import CLAIMS as SPACE_CLAIMS
from esalign.testing.subject import Subject

__all__ = ["BACKEND_CLAIMS", "OPTIMIZER_CLAIMS", "SPACE_CLAIMS", "FakeBackend", "Reference", "Subject"]
