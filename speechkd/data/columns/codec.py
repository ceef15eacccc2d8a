"""Packs teacher signals into bytes and back: token ids and log-probs, vectorised over rows. No file access.

Ids are exact. A row of K distinct ids is stored sorted, in Elias-Fano form: the low bits of each id unchanged, the high bits as one
bit string whose i-th set bit is at (high part of id i) + i. A row takes at most K (2 + log2(V / K)) bits: 13.2 bits per id for 64 of
151,936 ids, where fixed width takes 18. Every row of a column has the same length.
X in a name: the bytes, or the bits, of a row.

Log-probs x = -logp in nats are stored as c = round(n sqrt(x / S)), n = 2^bits - 1, S the row's largest x (float16, rounded up):
    x^ = S (c / n)^2,   |x^ - x| <= sqrt(S x) / n + S / (4 n^2)
The step grows with x, so likely tokens, which carry the loss, are stored most precisely. x above DEEPEST is stored as DEEPEST
(e^-30 = 9e-14), so the error is at most 0.118 nats at 8 bits and 0.00046 at 16. 32 bits are float32, unchanged.
"""

from __future__ import annotations

import numpy as np

from speechkd.core.errors import DataError

DEEPEST = 30.0
"""Largest -logp that 8 and 16 bits can store, in nats"""


def id_bits(vocabulary: int) -> int:
    """Bits of an id in 0 .. vocabulary - 1 at fixed width."""
    return max(1, (vocabulary - 1).bit_length())


def _low_bits(k: int, vocabulary: int) -> int:
    return max(0, (vocabulary // k).bit_length() - 1)


def id_row_bytes(k: int, vocabulary: int) -> int:
    """Bytes of a row of `k` ids."""
    low = _low_bits(k, vocabulary)
    return -(-(k + ((vocabulary - 1) >> low) + k * low) // 8)


def pack_id_rows(ids_TK: np.ndarray, vocabulary: int) -> np.ndarray:
    """Rows of strictly ascending ids in 0 .. vocabulary - 1 as uint8 [T, id_row_bytes]."""
    T, k = ids_TK.shape
    low = _low_bits(k, vocabulary)
    ids_TK = ids_TK.astype(np.int64)
    assert ids_TK.size == 0 or (ids_TK.min() >= 0 and ids_TK.max() < vocabulary and (np.diff(ids_TK, axis=1) > 0).all())
    high = k + ((vocabulary - 1) >> low)  # length of the high parts' bit string
    bits_TX = np.zeros((T, high + k * low), dtype=np.uint8)
    np.put_along_axis(bits_TX, (ids_TK >> low) + np.arange(k), 1, axis=1)
    bits_TX[:, high:] = ((ids_TK[:, :, None] >> np.arange(low)) & 1).reshape(T, k * low)
    return np.packbits(bits_TX, axis=1, bitorder="little")


def unpack_id_rows(rows_TX: np.ndarray, k: int, vocabulary: int) -> np.ndarray:
    """int32 [T, k], ascending. Raises DataError for bytes that do not encode `k` distinct ids."""
    T, low = rows_TX.shape[0], _low_bits(k, vocabulary)
    high = k + ((vocabulary - 1) >> low)
    bits_TX = np.unpackbits(rows_TX, axis=1, count=high + k * low, bitorder="little")
    ones_TX = bits_TX[:, :high]
    if (ones_TX.sum(axis=1, dtype=np.int64) != k).any():
        raise DataError(f"a packed row does not hold {k} ids")
    high_TK = np.nonzero(ones_TX)[1].reshape(T, k) - np.arange(k)
    low_TK = bits_TX[:, high:].reshape(T, k, low) @ (1 << np.arange(low, dtype=np.int64))
    ids_TK = (high_TK << low) + low_TK
    if ids_TK.size and (ids_TK.max() >= vocabulary or not (np.diff(ids_TK, axis=1) > 0).all()):
        raise DataError(f"a packed row holds ids that are not ascending below {vocabulary}")
    return ids_TK.astype(np.int32)


def pack_numbers(values_N: np.ndarray, bits: int) -> np.ndarray:
    """Non-negative numbers below 2^bits, one after another, as uint8 [ceil(N bits / 8)]."""
    values_N = values_N.astype(np.int64)
    assert values_N.size == 0 or (values_N.min() >= 0 and values_N.max() < 1 << bits)
    return np.packbits(((values_N[:, None] >> np.arange(bits)) & 1).astype(np.uint8).reshape(-1), bitorder="little")


def unpack_numbers(data_X: np.ndarray, bits: int, count: int) -> np.ndarray:
    """int64 [count]; `data_X` must have exactly the bytes of `count` numbers."""
    bits_NB = np.unpackbits(data_X, count=count * bits, bitorder="little").reshape(count, bits)
    numbers_N: np.ndarray = bits_NB @ (1 << np.arange(bits, dtype=np.int64))
    return numbers_N


def logp_row_bytes(k: int, bits: int) -> int:
    """Bytes of a row of `k` log-probs."""
    return 4 * k if bits == 32 else 2 + k * bits // 8


def pack_logp_rows(logp_TK: np.ndarray, bits: int) -> np.ndarray:
    """Log-probs <= 0 as uint8 [T, logp_row_bytes]: the row's scale, then one code per log-prob."""
    if bits == 32:
        return np.ascontiguousarray(logp_TK, dtype="<f4").view(np.uint8).reshape(len(logp_TK), -1)
    depth_TK = np.clip(-logp_TK.astype(np.float64), 0.0, DEEPEST)
    scale_T = depth_TK.max(axis=1, initial=0.0)
    half_T = scale_T.astype("<f2")
    half_T = np.where(half_T < scale_T, np.nextafter(half_T, np.float16(np.inf)), half_T).astype("<f2")
    ratio_TK = depth_TK / np.maximum(half_T.astype(np.float64), 1e-30)[:, None]
    codes_TK = np.rint((2**bits - 1) * np.sqrt(ratio_TK)).astype("<u1" if bits == 8 else "<u2")
    return np.concatenate([half_T[:, None].view(np.uint8), codes_TK.view(np.uint8)], axis=1)


def unpack_logp_rows(rows_TX: np.ndarray, k: int, bits: int) -> np.ndarray:
    """float32 [T, k]. Raises DataError for a scale that is out of range."""
    rows_TX = np.ascontiguousarray(rows_TX)
    if bits == 32:
        return rows_TX.view("<f4").reshape(-1, k)
    scale_T = np.ascontiguousarray(rows_TX[:, :2]).view("<f2")[:, 0].astype(np.float64)
    if not ((0 <= scale_T) & (scale_T <= 2 * DEEPEST)).all():
        raise DataError("a packed row's scale of log-probs is out of range")
    codes_TK = np.ascontiguousarray(rows_TX[:, 2:]).view("<u1" if bits == 8 else "<u2").reshape(-1, k)
    return (-scale_T[:, None] * (codes_TK / (2**bits - 1)) ** 2).astype(np.float32)
