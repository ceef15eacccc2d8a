"""Synthesises clips for pre-training and scoring the encoder, block by block in fresh processes."""

from __future__ import annotations

import functools
import math
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from texts import load_source
from torch import Tensor
from torchaudio.functional import resample
from transformers import WhisperFeatureExtractor

from speechkd.data.audio.raw import RawClip
from speechkd.data.sources.base import Item
from speechkd.data.sources.espeak import EspeakSource

RATE = 16000
BLOCK = 250


def synthesise(card: Path, items: Sequence[Item], processes: int = 2) -> list[np.ndarray]:
    """Each item's samples, int16 [T] at 16 kHz, in order. Each block gets its own process, because espeak keeps state.

    The processes are forked (a fresh import would take longer than a block), so they use no torch: resampling is done here.
    """
    source, _ = load_source(card)
    blocks = [list(items[start : start + BLOCK]) for start in range(0, len(items), BLOCK)]
    clips: list[np.ndarray] = []
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
        for block in pool.imap(functools.partial(_read, source), blocks, chunksize=1):
            clips += _resampled(block)
    return clips


def _read(source: EspeakSource, items: list[Item]) -> list[RawClip]:
    return list(source.read(items))


def _resampled(block: Sequence[RawClip]) -> list[np.ndarray]:
    """A block's clips at 16 kHz, as int16. Clips are padded to whole periods of the rate ratio and joined: one pass, same samples."""
    rate = block[0].rate
    period_in, period_out = rate // math.gcd(rate, RATE), RATE // math.gcd(rate, RATE)
    periods = [-(-len(clip.samples_TC) // period_in) + 1 for clip in block]
    joined_T = np.zeros(sum(periods) * period_in, np.float32)
    starts = np.concatenate([[0], np.cumsum(periods)[:-1]])
    for start, clip in zip(starts, block, strict=True):
        joined_T[start * period_in : start * period_in + len(clip.samples_TC)] = clip.samples_TC
    out_T = (resample(torch.from_numpy(joined_T), rate, RATE).clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
    lengths = [math.ceil(len(clip.samples_TC) * RATE / rate) for clip in block]
    return [out_T[start * period_out : start * period_out + length].copy() for start, length in zip(starts, lengths, strict=True)]


def log_mel(extractor: WhisperFeatureExtractor, clips: Sequence[np.ndarray]) -> Tensor:
    """int16 clips -> [B, mels, frames], padded with silence or cut to the extractor's window."""
    floats = [clip.astype(np.float32) / 32768 for clip in clips]
    features_BMT: Tensor = extractor(floats, sampling_rate=RATE, return_tensors="pt").input_features
    return features_BMT
