"""What every test finds: a cache of its own session."""

import os
import tempfile

os.environ["ESALIGN_CACHE"] = tempfile.mkdtemp(prefix="esalign-tests-")
