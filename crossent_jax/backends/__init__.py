"""The table of backends, in order of preference."""

from .pallas_tpu import PALLAS_TPU
from .reference import REFERENCE
from .xla import XLA

BACKENDS = {backend.name: backend for backend in (XLA, PALLAS_TPU, REFERENCE)}
