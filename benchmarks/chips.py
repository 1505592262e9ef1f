"""Compile for a chip that is not here: TPU generations through libtpu, an H100 through JAX's CUDA plugin."""

import importlib.util
import os

import jax
import numpy as np
from jax.experimental import topologies

# What libtpu wants to hear where there is no TPU. Set only where something is compiled for one: a real one would believe it.
PRETENCE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

TPU_TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v7x": "tpu7x:2x2x1"}
# Of one chip, as documented: bytes a second of its memory and cycles a second. None of v7x: its clock is not.
RATES = {"v4": (1228e9, 1.05e9), "v5e": (819e9, 1.5e9), "v5p": (2765e9, 1.75e9), "v6e": (1640e9, 1.75e9)}
H100_DESCRIPTION = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
  device_vendor: "NVIDIA Corporation" name: "NVIDIA H100 80GB HBM3"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
CHIPS = (*TPU_TOPOLOGIES, "h100")
TESTED = ("v5e", "v6e", "h100")


def missing_compiler(chip: str) -> str | None:
    """The package without which ``chip`` cannot be compiled for, or None."""
    package = "jax_cuda13_plugin" if chip == "h100" else "libtpu"
    return None if importlib.util.find_spec(package) else package


def _topology(chip: str):
    if chip == "h100":
        return topologies.get_topology_desc(platform="cuda", target_config=H100_DESCRIPTION, topology="1x1x1")
    os.environ.update(PRETENCE)
    return topologies.get_topology_desc(platform="tpu", topology_name=TPU_TOPOLOGIES[chip])


def compile_for(chip: str, function, *shapes_and_dtypes):
    """``function`` compiled for one ``chip``, from ``(shape, dtype)`` pairs."""
    mesh = jax.sharding.Mesh(np.array(_topology(chip).devices[:1]), ("chip",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes_and_dtypes]
    return jax.jit(function).lower(*arguments).compile()
