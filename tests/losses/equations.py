"""The papers' equations in fp64 numpy, one row or utterance at a time, no masks: the independent side of the comparison."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max())
    return np.asarray(e / e.sum())


def kl(a: Array, b: Array) -> float:
    return float(sum(x * np.log(x / y) for x, y in zip(a, b, strict=True) if x > 0))


def js(a: Array, b: Array) -> float:
    return 0.5 * kl(a, (a + b) / 2) + 0.5 * kl(b, (a + b) / 2)


def mixture(name: str, p: Array, q: Array, share: float) -> float:
    """GKD's and DistiLLM's divergences; `share` is beta or alpha. p is the teacher."""
    if name == "jsd":
        m = share * p + (1 - share) * q
        return share * kl(p, m) + (1 - share) * kl(q, m)
    if name == "skew_kl":
        return kl(p, share * p + (1 - share) * q)
    if name == "skew_reverse_kl":
        return kl(q, (1 - share) * p + share * q)
    return kl(q, p) if name == "reverse_kl" else kl(p, q)


def ce(z: Array, token: int) -> float:
    return float(-np.log(softmax(z)[token]))


def cosine(a: Array, b: Array) -> float:
    return float(1 - a @ b / np.sqrt((a @ a) * (b @ b)))


def cka(x: Array, y: Array, w: Array, mode: str) -> float:
    """<CKC, CMC> / (|CKC| |CMC|) by explicit Gram and centring matrices."""
    n = len(w)
    if mode == "weighted_hsic":
        p = w / w.sum()
        half = np.diag(np.sqrt(p)) @ (np.eye(n) - np.outer(np.ones(n), p))
    else:
        half = (np.eye(n) - np.ones((n, n)) / n) @ np.diag(w if mode == "pre_w" else np.sqrt(w))
    k, m = half @ x @ x.T @ half.T, half @ y @ y.T @ half.T
    return float(np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m)))


def audio_attention(attention_BHRQ: Tensor, response_mask_BR: Tensor, audio_mask_BQ: Tensor) -> Tensor:
    """w of each utterance, [B, Q]: how much the teacher's response attends to each audio position; sums to 1 over valid positions.

    Args:
        attention_BHRQ: last-layer attention, H heads, rows the response tokens, columns the audio positions.
        response_mask_BR, audio_mask_BQ: boolean, False for padding, whatever stands there.
    0 everywhere for an utterance without response or audio.
    """
    valid_BRQ = response_mask_BR.unsqueeze(2) & audio_mask_BQ.unsqueeze(1)
    summed_BQ = attention_BHRQ.detach().masked_fill(~valid_BRQ.unsqueeze(1), 0.0).sum(dim=(1, 2))
    # the mean over heads and rows differs from this sum by a factor that the normalisation takes out
    return summed_BQ / summed_BQ.sum(dim=1, keepdim=True).clamp(min=1e-30)
