"""Fills a module's parameters and buffers with a checkpoint's tensors by name, and refuses missing and unexpected ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from speechkd.core.errors import DataError
from speechkd.core.tensors import Stored, read_into, read_tensor

COMPARED = 1 << 22
"""Numbers in memory while two tensors are compared"""


def fill_whole(param: nn.Parameter, stored: Stored) -> None:
    """Read `stored` into a parameter that this process holds whole."""
    whole = param.data if param.data.is_contiguous() else param.data.contiguous()
    read_into(whole.view(-1), stored)
    param.data.copy_(whole)


def whole_shape(param: nn.Parameter) -> torch.Size:
    """The shape of a parameter that this process holds whole."""
    return param.shape


def fill(
    module: nn.Module,
    tensors: Mapping[str, Stored],
    folder: Path,
    put: Callable[[nn.Parameter, Stored], None] = fill_whole,
    shape_of: Callable[[nn.Parameter], torch.Size] = whole_shape,
) -> None:
    """Fill every parameter (by `put`) and persistent buffer of `module` with the tensor of its name; tied ones may stand under any name.

    Raises DataError naming what is missing, unexpected or of another shape: nothing is left as it was created.
    """
    params: dict[int, tuple[nn.Parameter, list[str]]] = {}
    for name, param in module.named_parameters(remove_duplicate=False):
        params.setdefault(id(param), (param, []))[1].append(name)
    persistent = set(module.state_dict(keep_vars=True))  # names only: no tensor is copied
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in persistent}
    missing = [names[0] for _, names in params.values() if not any(n in tensors for n in names)] + [n for n in buffers if n not in tensors]
    known = {n for _, names in params.values() for n in names} | set(buffers)
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    unexpected = [n for n in tensors if n not in known and not any(re.search(p, n) for p in ignored)]
    if missing or unexpected:
        raise DataError(misfit(folder, missing, unexpected))
    for param, names in params.values():
        stored = _only(tensors, names, folder)
        _same_shape(names[0], shape_of(param), stored)
        put(param, stored)
    with torch.no_grad():
        for name, buffer in buffers.items():
            _same_shape(name, buffer.shape, tensors[name])
            buffer.copy_(read_tensor(tensors[name]))


def _same_shape(name: str, shape: torch.Size, stored: Stored) -> None:
    if tuple(shape) != stored.shape:
        raise DataError(f"`{name}` has shape {list(shape)} in the model and {list(stored.shape)} in the file ({stored.path})")


def misfit(folder: Path, missing: list[str], unexpected: list[str]) -> str:
    """One line on tensors that a folder lacks, and on those that nothing asked for."""
    found = (("missing", missing), ("unexpected", unexpected))
    parts = [f"{len(names)} {word} tensors, first `{names[0]}`" for word, names in found if names]
    return f"weights do not fit the architecture in config.json: {'; '.join(parts)} ({folder})"


def _only(tensors: Mapping[str, Stored], names: list[str], folder: Path) -> Stored:
    """The one tensor of a parameter that may be tied under several names; two different ones are refused, because one would be lost."""
    found = [tensors[name] for name in names if name in tensors]
    for other in found[1:]:
        if other.shape != found[0].shape or other.dtype != found[0].dtype or not _same_bytes(other, found[0]):
            way_out = "set `tie_word_embeddings` to false there, or save the model with one of them"
            raise DataError(f"`{found[0].name}` and `{other.name}` are tied in config.json but differ in the file: {way_out} ({folder})")
    return found[0]


def _same_bytes(one: Stored, other: Stored) -> bool:
    """Whether two tensors of one shape and dtype are equal in every byte; a part of each is in memory at a time."""
    for start in range(0, one.numel, COMPARED):
        parts = [torch.empty(min(COMPARED, one.numel - start), dtype=one.dtype) for _ in range(2)]
        for part, stored in zip(parts, (one, other), strict=True):
            read_into(part, stored, start)
        if not torch.equal(*(part.view(torch.uint8) for part in parts)):
            return False
    return True
