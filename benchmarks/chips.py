"""Compile for a chip that is not here: TPU generations through libtpu, GPUs through JAX's CUDA plugin; or this CPU."""

import importlib.util
import os
from typing import NamedTuple

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


class Gpu(NamedTuple):
    """A GPU as documented, for XLA: multiprocessors, floating-point units of each, shared memory of each and of a block in
    bytes, bytes a second, second-level cache, memory, GHz, compute capability."""

    name: str
    cores: int
    units: int
    shared: int
    shared_of_block: int
    bandwidth: int
    cache: int
    memory: int
    clock: float
    capability: tuple[int, int]


GPUS = {
    "t4": Gpu("Tesla T4", 40, 64, 65536, 65536, 320064000000, 4194304, 15843721216, 1.59, (7, 5)),
    "a100": Gpu("NVIDIA A100-SXM4-40GB", 108, 64, 167936, 166912, 1555200000000, 41943040, 42505273344, 1.41, (8, 0)),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 132, 128, 233472, 232448, 3352320000000, 52428800, 84942979072, 1.98, (9, 0)),
}


def description(gpu: Gpu) -> str:
    """The GPU in the words of XLA."""
    major, minor = gpu.capability
    extension = "feature_extension: ACCELERATED_FEATURES" if gpu.capability >= (9, 0) else ""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {1024 if major == 7 else 2048}
  core_count: {gpu.cores} fpus_per_core: {gpu.units}
  shared_memory_per_block: 49152 shared_memory_per_core: {gpu.shared} shared_memory_per_block_optin: {gpu.shared_of_block}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth} l2_cache_size: {gpu.cache} clock_rate_ghz: {gpu.clock} device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} {extension} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
  device_vendor: "NVIDIA Corporation" name: "{gpu.name}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{gpu.name}"
"""


CHIPS = (*TPU_TOPOLOGIES, *GPUS)
TESTED = ("v5e", "v6e", "h100")


def missing_compiler(chip: str) -> str | None:
    """The package without which ``chip`` cannot be compiled for, or None."""
    if chip == "cpu":
        return None
    package = "jax_cuda13_plugin" if chip in GPUS else "libtpu"
    return None if importlib.util.find_spec(package) else package


def devices(chip: str, gpus: int = 1):
    """Of this CPU, of so many GPUs of one host, of the smallest slice of a TPU, or of a slice that is named ("v5e:4x4")."""
    if chip == "cpu":
        return jax.devices("cpu")
    if chip in GPUS:
        shape = f"1x{gpus}x1"
        return topologies.get_topology_desc(platform="cuda", target_config=description(GPUS[chip]), topology=shape).devices
    os.environ.update(PRETENCE)
    return topologies.get_topology_desc(platform="tpu", topology_name=TPU_TOPOLOGIES.get(chip, chip)).devices


def compile_for(chip: str, function, *shapes_and_dtypes):
    """``function`` compiled for one ``chip``, or for "cpu", from ``(shape, dtype)`` pairs."""
    mesh = jax.sharding.Mesh(np.array(devices(chip)[:1]), ("chip",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes_and_dtypes]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # a TPU's kernels ask it which chip they are for
        return jax.jit(function).lower(*arguments).compile()
