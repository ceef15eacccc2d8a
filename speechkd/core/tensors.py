"""Reads slices of safetensors files by byte range, and writes files tensor by tensor.

The safetensors library maps whole files, so every page it touches counts as this process's memory, and it cannot read a flat range of
a matrix, which a ZeRO partition is. Format: 8 bytes of little-endian header length, a JSON header, then the data. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speechkd.core.errors import DataError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32}
DTYPES |= {"I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
HEADER_LIMIT = 100_000_000
SCRATCH_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its location, dtype and shape."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """bytes from the beginning of the file"""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Stored]:
    """All tensors of a safetensors file, without reading them. Raises DataError if header and file do not agree."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = os.fstat(stream.fileno()).st_size
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise DataError(f"not a safetensors file: header of {length} bytes in a file of {size} ({path})")
            return _parse(path, stream.read(length), size)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise error if isinstance(error, DataError) else DataError(f"not a safetensors file: {error!r} ({path})") from None


def _parse(path: Path, header: bytes, size: int) -> dict[str, Stored]:
    entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
    return {name: _stored(path, name, entry, 8 + len(header), size) for name, entry in entries.items()}


def tensors_in(data: bytes, prefix: str, label: str) -> dict[str, torch.Tensor]:
    """The tensors of an in-memory safetensors file whose names begin with `prefix`, keyed without the prefix; others are not read.

    Raises DataError naming `label` if header and bytes do not agree.
    """
    where, length = Path(label), int.from_bytes(data[:8], "little")
    try:
        if not 2 <= length <= min(HEADER_LIMIT, len(data) - 8):
            raise DataError(f"not a safetensors file: header of {length} bytes in {len(data)} ({label})")
        found = _parse(where, data[8 : 8 + length], len(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise error if isinstance(error, DataError) else DataError(f"not a safetensors file: {error!r} ({label})") from None
    return {name.removeprefix(prefix): _tensor(data, stored) for name, stored in found.items() if name.startswith(prefix)}


def _tensor(data: bytes, stored: Stored) -> torch.Tensor:
    if not stored.numel:
        return torch.empty(stored.shape, dtype=stored.dtype)
    end = stored.offset + stored.numel * stored.dtype.itemsize
    return torch.frombuffer(bytearray(data[stored.offset : end]), dtype=stored.dtype).view(stored.shape)


def _stored(path: Path, name: str, entry: dict[str, Any], start: int, size: int) -> Stored:
    if entry["dtype"] not in DTYPES:
        raise DataError(f"tensor `{name}` has dtype {entry['dtype']}, which is not supported ({path})")
    dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= size - start or end - begin != math.prod(shape) * dtype.itemsize:
        raise DataError(f"tensor `{name}` of shape {list(shape)} does not fit its bytes {begin}..{end} ({path})")
    return Stored(path, name, dtype, shape, start + begin)


def read_into(target_N: torch.Tensor, stored: Stored, start: int = 0) -> None:
    """Fill the flat tensor `target_N` (any device, any dtype) with elements start .. start + N of `stored`, through a small buffer."""
    assert target_N.dim() == 1 and 0 <= start and start + target_N.numel() <= stored.numel
    step = max(1, SCRATCH_BYTES // stored.dtype.itemsize)
    scratch = torch.empty(min(step, target_N.numel()), dtype=stored.dtype)
    view = _bytes_of(scratch)
    handle = os.open(stored.path, os.O_RDONLY)
    try:
        for begin in range(0, target_N.numel(), step):
            count = min(step, target_N.numel() - begin)
            _read_exactly(handle, view[: count * stored.dtype.itemsize], stored.offset + (start + begin) * stored.dtype.itemsize, stored)
            target_N[begin : begin + count].copy_(scratch[:count])
    finally:
        os.close(handle)


def _bytes_of(flat: torch.Tensor) -> memoryview:
    """The bytes of a flat CPU tensor, shared with it."""
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)


def _read_exactly(handle: int, view: memoryview, offset: int, stored: Stored) -> None:
    done = 0
    while done < len(view):
        got = os.preadv(handle, [view[done:]], offset + done)
        if got == 0:
            raise DataError(f"the file ends inside tensor `{stored.name}` ({stored.path})")
        done += got


def read_tensor(stored: Stored, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The whole tensor on the CPU, in its own dtype or `dtype`."""
    out = torch.empty(stored.shape, dtype=dtype or stored.dtype)
    read_into(out.view(-1), stored)
    return out


def _header(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> bytes:
    """What stands in front of the data of a float32 file."""
    header, offset = {}, 0
    for name, shape in shapes:
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns data to 8 bytes
    return len(text).to_bytes(8, "little") + text


def file_bytes(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    """Size of the file that `TensorWriter` makes of tensors with these names and shapes."""
    return len(_header(shapes)) + 4 * sum(math.prod(shape) for _, shape in shapes)


class TensorWriter:
    """Writes a float32 safetensors file one tensor after another, so that one tensor at a time is in memory; hashes while it writes."""

    def __init__(self, path: Path, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        self._left = [(name, math.prod(shape)) for name, shape in shapes]
        self._stream, self._hash = path.open("xb"), hashlib.sha256()
        self._write(_header(shapes))

    def _write(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._stream.write(data)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append the next tensor of `shapes`."""
        expected, numel = self._left.pop(0)
        assert (name, tensor.numel()) == (expected, numel), f"{name} is not the tensor that comes next ({expected})"
        flat = tensor.detach().to("cpu", torch.float32).contiguous().view(-1)
        self._write(_bytes_of(flat))

    def close(self) -> str:
        """Sync the finished file and return its sha256."""
        assert not self._left, f"{len(self._left)} tensors were announced and not written"
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return self._hash.hexdigest()
