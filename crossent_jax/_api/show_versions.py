"""What to paste into a bug report."""

import platform
from importlib import metadata

import jax

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
    """Print the versions of this library, of what it stands on, of Python, and the devices JAX sees.

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


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
