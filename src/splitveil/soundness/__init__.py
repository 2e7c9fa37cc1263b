"""Whether a cut model can be relied on, tried on images before any long work: see `check_model`."""

from splitveil.soundness.halves import frozen
from splitveil.soundness.model import BATCH, check_model, check_server
from splitveil.soundness.rows import Rows, check_rows, share_of

__all__ = ["BATCH", "Rows", "check_model", "check_rows", "check_server", "frozen", "share_of"]
