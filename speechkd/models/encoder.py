"""The frozen speech encoder, all of its layers, and a learned mix of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

SAMPLE_RATE = 16_000


class FrozenEncoder(nn.Module):
    """A Whisper-type encoder that never trains and gives every layer's states.

    `encoder`: a transformers `WhisperEncoder`. Its window is fixed (30 s for the published models): features are padded to it.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stays in evaluation mode: a frozen teacher of features has no dropout."""
        return super().train(False)

    @property
    def layers(self) -> int:
        """Number of states `forward` gives: the input embedding and one per transformer layer."""
        return int(self.encoder.config.encoder_layers) + 1

    @property
    def width(self) -> int:
        """Width of the states."""
        return int(self.encoder.config.d_model)

    @torch.no_grad()
    def forward(self, features_BMT: Tensor) -> tuple[Tensor, ...]:
        """Log-mel features [B, M, 2F] -> L states, each [B, F, D]."""
        dtype = next(self.encoder.parameters()).dtype
        states: tuple[Tensor, ...] = self.encoder(features_BMT.to(dtype), output_hidden_states=True).hidden_states
        return states


class LayerMix(nn.Module):
    """Task-independent weighted sum of encoder layers, h = sum_l softmax(a)_l h_l (SUPERB style; wong26a section 3).

    The softmax over `a` is reconstructed: the paper names the weighted sum only. `normalise` brings every layer's states to zero mean
    and unit variance first (an option of s3prl's SUPERB code too): a small encoder's layers differ in scale by far, and what only the
    early ones hold would otherwise be drowned by the last.
    """

    def __init__(self, layers: int, normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise
        self.logits_L = nn.Parameter(torch.zeros(layers))

    def forward(self, states_LBFD: Sequence[Tensor]) -> Tensor:
        """L states [B, F, D] -> [B, F, D]."""
        weights_L = torch.softmax(self.logits_L.float(), 0).to(states_LBFD[0].dtype)
        if self.normalise:
            states_LBFD = [layer_norm(states_BFD, states_BFD.shape[-1:]) for states_BFD in states_LBFD]
        mixed = states_LBFD[0] * weights_L[0]
        for layer in range(1, len(states_LBFD)):
            mixed = mixed + states_LBFD[layer] * weights_L[layer]
        return mixed


Mixed = Literal["all", "last"]
"""Which encoder states a projector is given: a learned sum of all, or the last one"""


class LastLayer(nn.Module):
    """The encoder's last state as it is (after the encoder's own final norm); nothing to learn."""

    def forward(self, states_LBFD: Sequence[Tensor]) -> Tensor:
        """L states [B, F, D] -> [B, F, D]."""
        return states_LBFD[-1]


def layer_mix(mixed: Mixed, layers: int, normalise: bool) -> LayerMix | LastLayer:
    """What stands between an encoder of `layers` states and a projector."""
    return LastLayer() if mixed == "last" else LayerMix(layers, normalise)


class Features:
    """Log-mel features as the encoder's own `preprocessor_config.json` says, and how many frames of them are speech."""

    def __init__(self, extractor: Any) -> None:
        """`extractor`: a transformers `WhisperFeatureExtractor`."""
        self.extractor = extractor
        self.window_seconds = extractor.n_samples / SAMPLE_RATE

    def frames(self, samples: int) -> int:
        """Encoder frames F that `samples` of 16 kHz audio fill (hop, then the encoder's stride of 2)."""
        mels = -(-samples // self.extractor.hop_length)
        return max(1, -(-mels // 2))

    def __call__(self, clips: Sequence[np.ndarray]) -> Tensor:
        """Mono 16 kHz clips -> [B, M, 2F] of the whole window, zero padded. Longer clips are the card's fault and refused there."""
        longest = max((clip.size for clip in clips), default=0)
        if longest > self.extractor.n_samples:
            raise ValueError(f"a clip of {longest / SAMPLE_RATE:.1f} s does not fit the encoder's window of {self.window_seconds:g} s")
        out = self.extractor(list(clips), sampling_rate=SAMPLE_RATE, return_tensors="pt", padding="max_length")
        features: Tensor = out["input_features"]
        return features
