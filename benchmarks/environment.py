"""What a result was measured on."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    *("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "crossent-jax", "optax", "numpy", "tokamax"),
    *("torch", "triton", "liger_kernel", "cut-cross-entropy", "quack-kernels"),
)


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Of the checkout, with a plus where files differ from it; None outside one."""
    try:
        words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> dict[str, Any]:
    """Date, commit, versions and machine: everything but the device, which is never touched here."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {package: found for package in PACKAGES if (found := version(package))},
        "machine": platform.machine(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def processor() -> str:
    """Its name, and the widest vectors it has: what XLA compiles for; where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    found = {key.strip(): value.strip() for key, value in found.items()}
    flags = found.get("flags", "").split()
    widest = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags]
    return " ".join([found.get("model name", platform.processor()), *widest[:1]])


def environment() -> dict[str, Any]:
    """The machine and the device that JAX uses by default."""
    import jax

    device = jax.devices()[0]
    found = {"platform": jax.default_backend(), "device": device.device_kind, "devices": jax.device_count()}
    return machine() | found | {"runtime": device.client.platform_version}
