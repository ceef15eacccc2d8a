"""How far stored log-probs may be from what was given: the bound in the docstring of `speechkd/data/columns/codec.py`."""

from __future__ import annotations

import numpy as np

from speechkd.data.columns import codec


def logp_error(logp_TK: np.ndarray, bits: int) -> np.ndarray:
    """The largest error, in nats, that storing each of these log-probs can make, float64 [T, K]; infinite beyond DEEPEST."""
    depth_TK = -logp_TK.astype(np.float64)
    if bits == 32:
        return np.zeros_like(depth_TK)
    n = 2**bits - 1
    scale_T1 = np.minimum(depth_TK.max(axis=1, keepdims=True, initial=0.0), codec.DEEPEST) * (1 + 2**-10) + 2**-24
    error_TK = np.sqrt(scale_T1 * depth_TK) / n + scale_T1 / (4 * n * n) + 2**-23 * depth_TK  # the last: decoded as float32
    return np.where(depth_TK > codec.DEEPEST, np.inf, error_TK)
