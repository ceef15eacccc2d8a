"""Seeds derived from names: no RNG state is saved, so every world size and every resume draws the same numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager


def derive(seed: int, *parts: str | int) -> int:
    """A 63-bit seed from `seed` and the names of its use (step, micro-batch index, purpose)."""
    text = "\x1f".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@contextmanager
def torch_seed(seed: int, *parts: str | int) -> Iterator[None]:
    """Run a block under a derived torch seed and restore the generator afterwards."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, *parts))
        yield
