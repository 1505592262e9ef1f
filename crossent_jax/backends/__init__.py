"""The table of backends, in order of preference."""

from .reference import REFERENCE
from .xla import XLA

BACKENDS = {backend.name: backend for backend in (XLA, REFERENCE)}
