"""What a result was measured on, and the file that keeps both."""

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """Date, versions, device and machine."""
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "device": device.device_kind,
        "platform": device.client.platform_version,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def write(path: Path, **results: Any) -> None:
    """The results as JSON, after the environment."""
    path.write_text(json.dumps({"about": environment(), **results}, indent=1) + "\n")
