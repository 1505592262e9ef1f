"""What to paste into a bug report."""

import platform
from importlib import metadata

import jax

from .._jax import kept_memory

PACKAGES = (
    "crossent-jax",
    "jax",
    "jaxlib",
    "chex",
    "optax",
    "jaxtyping",
    "numpy",
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
)


def show_versions() -> None:
    """Print the versions of this library, of what it stands on, of Python, the devices JAX sees, and whether a CPU's arrays
    leave their memory to the next ones (docs: On a CPU).

    Example:
        >>> import crossent_jax
        >>> crossent_jax.show_versions()  # doctest: +ELLIPSIS
        crossent-jax ...
    """
    for name in PACKAGES:
        version = _version(name)
        if version is not None:
            print(f"{name} {version}")
    print(f"python {platform.python_version()} on {platform.platform()}")
    print(f"backend {jax.default_backend()}: " + ", ".join(device.device_kind for device in jax.devices()))
    print(f"a CPU's memory is {_memory()}")


def _memory() -> str:
    if not kept_memory.can_be_set():
        return "as its C library has it"
    return "kept between calls" if kept_memory.is_kept() else f"given back at each call, {kept_memory.VARIABLE} can keep it"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
