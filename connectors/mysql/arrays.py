"""Arrow arrays from numpy buffers, without a Python object a value."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["from_bytes", "from_flags", "from_limbs", "from_numbers", "gather"]

Mask = npt.NDArray[np.bool_]


def _validity(nulls: Mask) -> pa.Buffer | None:
    if not nulls.any():
        return None
    return pa.py_buffer(np.packbits(~nulls, bitorder="little").tobytes())


def from_numbers(values: npt.NDArray[Any], nulls: Mask, kind: pa.DataType) -> pa.Array:
    """Return an array whose values are those of ``values``, which has the memory layout of ``kind``."""
    return pa.Array.from_buffers(kind, len(values), [_validity(nulls), pa.py_buffer(np.ascontiguousarray(values))])


def from_flags(values: Mask, nulls: Mask) -> pa.Array:
    """Return a boolean array."""
    bits = np.packbits(values, bitorder="little").tobytes()
    return pa.Array.from_buffers(pa.bool_(), len(values), [_validity(nulls), pa.py_buffer(bits)])


def from_limbs(low: npt.NDArray[np.uint64], high: npt.NDArray[np.uint64], nulls: Mask, kind: pa.DataType) -> pa.Array:
    """Return a decimal128 array of two's complement numbers in two halves."""
    return (
        from_numbers(np.stack([low, high], axis=1).reshape(-1), nulls, kind)
        if not len(low)
        else (
            pa.Array.from_buffers(
                kind, len(low), [_validity(nulls), pa.py_buffer(np.stack([low, high], axis=1).tobytes())]
            )
        )
    )


def from_bytes(
    data: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    nulls: Mask,
    kind: pa.DataType,
) -> pa.Array:
    """Return a string or binary array of slices of ``data``; the text must be UTF-8 already."""
    sizes = np.where(nulls, 0, sizes)
    values, offsets = gather(data, starts, sizes)
    if offsets[-1] >= 2**31:
        raise ValueError("more than 2 GiB in one column of one batch")
    buffers = [_validity(nulls), pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(values)]
    return pa.Array.from_buffers(kind, len(sizes), buffers)


def gather(
    data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return slices of ``data`` one after the other, and the offsets between them."""
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    where = np.repeat(starts - offsets[:-1], sizes)
    where += np.arange(offsets[-1])
    return data[where], offsets
