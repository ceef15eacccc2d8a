"""Arrow arrays built from buffers. `pa.array` of a list would first import pandas, which takes a tenth of a second."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def texts(values: Sequence[str]) -> pa.Array:
    """A string array without nulls."""
    encoded = [value.encode("utf-8") for value in values]
    ends_N = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    assert ends_N[-1] < 2**31, "offsets of a string array have 32 bits"
    buffers = [None, pa.py_buffer(ends_N.astype(np.int32)), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)


def numbers(values: Sequence[int]) -> pa.Array:
    """An int32 array without nulls."""
    return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(np.array(values, np.int32))])


def digests(values: Sequence[bytes]) -> pa.Array:
    """A binary(32) array without nulls."""
    assert all(len(value) == 32 for value in values)
    return pa.Array.from_buffers(pa.binary(32), len(values), [None, pa.py_buffer(b"".join(values))])
