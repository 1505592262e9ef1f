"""A pytest plugin: compile as Colab's TPU runtime does, jax 0.7.2 with libtpu 0.0.21.1, where there is no TPU.

JAX asks the device two things there. Whether a layout is its default one: the compiler's description of a chip has no
answer, and the process would end. And when its runtime was built: before 2025-08-14 JAX writes version 7 of Mosaic's
modules, without a device version 8, which this compiler does not read.
"""


def pytest_collection_finish():
    """After the tests' own configuration of JAX."""
    from jax._src import tpu_custom_call
    from jax._src.interpreters import pxla

    pxla.is_default_layout = lambda layout, *_: layout is None
    tpu_custom_call.get_ir_version = lambda _: 7
