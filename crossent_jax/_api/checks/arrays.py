"""Arguments of every kind of call: arrays, numbers and names."""

import math
import numbers

import jax
import jax.dtypes
import jax.numpy as jnp
import numpy as np

from ..._jax.versions import is_bound, is_told, varying_axes
from ..._row.reduce import REDUCTIONS

SCALES_AND_PACKED = ("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "float8_e8m0fnu")


def array(name: str, value) -> jax.Array:
    """Any array-like as a JAX array."""
    if isinstance(value, jax.Array):
        return value
    if value is None or isinstance(value, str):
        raise TypeError(f"{name} must be an array; got {value!r}.")
    if isinstance(value, jax.ShapeDtypeStruct):
        raise TypeError(
            f"{name} must be an array; got a shape without values, {value}. Shapes are for crossent_jax.explain."
        )
    return jnp.asarray(_narrow_integers(_numbers(name, value)))


def _numbers(name: str, value) -> np.ndarray:
    """As NumPy's array, of a dtype that holds numbers."""
    try:
        found = np.asarray(value)
    except ValueError:  # by NumPy, for lists of lists of different lengths
        raise ValueError(f"{name} must be a rectangular array; its parts have different shapes. Pad them to one.") from None
    if found.dtype == object:
        raise TypeError(f"{name} must be an array of numbers; got an object of type {type(value).__name__}.")
    if found.dtype.kind in "USMm" or found.dtype.names:  # text, times, records
        raise TypeError(f"{name} must be an array of numbers; got {described(found)}.")
    return found


def _narrow_integers(value: np.ndarray) -> np.ndarray:
    """Without x64 JAX would wrap 64-bit integers into 32 bits: saturate instead, so that no id becomes a class."""
    if not _loses_bits(value.dtype):
        return value
    limits = np.iinfo(np.int32)
    return np.clip(value, limits.min if value.dtype.kind == "i" else 0, limits.max).astype(np.int32)


def _loses_bits(dtype: np.dtype) -> bool:
    return dtype.kind in "iu" and dtype.itemsize == 8 and jax.dtypes.canonicalize_dtype(dtype) != dtype


def beyond_32_bits(value) -> np.ndarray | None:
    """An array-like of ids, not JAX's, of which some do not fit the 32 bits that JAX has without x64; None for any other."""
    if isinstance(value, jax.Array) or value is None:
        return None
    value = np.asarray(value)
    if not _loses_bits(value.dtype) or not value.size:
        return None
    limits = np.iinfo(np.int32)
    return value if value.max() > limits.max or (value.dtype.kind == "i" and value.min() < limits.min) else None


def renumbered(*values):
    """Ids that are only compared with each other: as given, or numbered anew where 32 bits would make some of them equal."""
    if all(beyond_32_bits(value) is None for value in values):
        return values
    arrays = [np.asarray(value) for value in values]
    numbers = np.unique(np.concatenate([x.astype(object).ravel() for x in arrays]), return_inverse=True)[1]
    parts = np.split(numbers.astype(np.int32), np.cumsum([x.size for x in arrays])[:-1])
    return tuple(part.reshape(x.shape) for part, x in zip(parts, arrays, strict=True))


def described(value) -> str:
    """What came, for a message."""
    return f"dtype {value.dtype} and shape {tuple(value.shape)}"


def floating(name: str, value, hint: str = "") -> jax.Array:
    """An array of a floating dtype, of at least 8 bits and a fraction: others are scales, or packed numbers to be scaled."""
    _refuse_scales(name, value)
    value = array(name, value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        fix = hint or f"cast it first: {name}.astype(jnp.float32)."
        raise TypeError(f"{name} must have a floating dtype; got {described(value)}. {fix[0].upper()}{fix[1:]}")
    return value


def _refuse_scales(name: str, value) -> None:
    """Before JAX sees it: XLA has no arrays of some of these dtypes, and JAX 0.7.2 does not know them."""
    if str(getattr(value, "dtype", None)) in SCALES_AND_PACKED:
        raise TypeError(
            f"{name} must have a floating dtype of 8 bits or more, with a fraction; got {described(value)}. Dequantise it "
            f"first: {name}.astype(jnp.bfloat16), times its scale."
        )


def boolean(name: str, value) -> jax.Array:
    """An array of truth values, or of integers, true where they are not 0."""
    value = array(name, value)
    if jnp.issubdtype(value.dtype, jnp.integer):
        return value != 0
    if value.dtype != jnp.bool_:
        weights = ", or row_weights for weights" if name == "where" else ""
        raise TypeError(f"{name} must be boolean or integer; got {described(value)}. Write {name} != 0{weights}.")
    return value


def same_shape(name: str, value: jax.Array, shape, meaning: str, hint: str = "Nothing is broadcast.") -> jax.Array:
    """The value, if it has the shape."""
    if value.shape != tuple(shape):
        raise ValueError(f"{name} must have {meaning} {tuple(shape)}; got {tuple(value.shape)}. {hint}")
    return value


def scalar(
    name: str, value, *, low: float = -math.inf, high: float = math.inf, off: float | None = 0.0, above: bool = False
):
    """A Python number or scalar array; None where a Python number says that the option is off.

    Python numbers are checked against ``[low, high]`` (``above``: ``(low, high]``); traced values by ``guards.values()``.
    """
    if isinstance(value, bool) or isinstance(value, str) or value is None:
        raise TypeError(f"{name} must be a number or a scalar array; got {value!r}.")
    if isinstance(value, numbers.Real):
        number = float(value)
        if not math.isfinite(number) or not low <= number <= high or (above and number == low):
            raise ValueError(f"{name} must be a finite number{_interval(low, high, above)}; got {value!r}.")
        return None if number == off else number
    value = array(name, value)
    if value.shape != () or value.dtype == jnp.bool_ or not jnp.issubdtype(value.dtype, jnp.number):
        raise TypeError(f"{name} must be a number or a scalar array; got {described(value)}.")
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be real; got {described(value)}. Take the real part.")
    return value.astype(jnp.float32) if jnp.issubdtype(value.dtype, jnp.integer) else value


def _interval(low: float, high: float, above: bool) -> str:
    if low == -math.inf:
        return ""
    return f", {'above' if above else 'at least'} {low:g}" + ("" if high == math.inf else f" and at most {high:g}")


def one_of(name: str, value, options: tuple[str, ...]):
    """One of a few names."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}; got {value!r}.")
    return value


def flag(name: str, value) -> bool:
    """True or False, static."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}.")
    return value


def reduction(value) -> str:
    """One of the four reductions."""
    return one_of("reduction", value, REDUCTIONS)


def axis_name(value) -> str | None:
    """The name of the mesh axis that splits the classes."""
    return mesh_axis("axis_name", value, "splits the classes")


def mesh_axis(name: str, value, does: str) -> str | None:
    """The name of one mesh axis. ``name``: of the argument."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be None or the name of the mesh axis that {does}; got {value!r}.")
    if value is not None and not is_bound(value):
        raise ValueError(
            f"{name}={value!r} is no mesh axis here: call the loss inside jax.shard_map over a mesh that has this axis, "
            f"or jax.vmap with axis_name={value!r}."
        )
    return value


def split_over(axis_name: str | None, along: str, argument: str = "axis_name", **arrays) -> None:
    """Arrays that a mesh axis of several devices must split: the same on all of them, each would count several times."""
    if axis_name is None or not is_told(axis_name):
        return
    devices = jax.lax.axis_size(axis_name)
    for name, x in arrays.items():
        if devices > 1 and axis_name not in varying_axes(x):
            raise ValueError(
                f"{name} must be split over {argument}={axis_name!r} along {along}; got the same on all "
                f"{devices} devices. Name the axis in the in_specs of jax.shard_map, or leave {argument} out."
            )
