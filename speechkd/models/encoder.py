"""The frozen speech encoder, the layer mix that combines its layers, and the features that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from speechkd.kernels.layer_sum import layer_sum
from speechkd.kernels.layer_sum.states import LayerStates
from speechkd.kernels.logits import wide
from speechkd.models.encoder_families import MEL_SAMPLES, SAMPLE_RATE, WINDOW_S, EncoderWindow, hearing, hearing_clips


class FrozenEncoder(nn.Module):
    """A speech encoder that never trains and gives every layer's states.

    `encoder`: a transformers module of one of `hearing.ENCODERS`.
    """

    def __init__(self, encoder: nn.Module, window: EncoderWindow = "full") -> None:
        super().__init__()
        self.encoder: Any = encoder.requires_grad_(False)
        if window == "clip":
            self.hearing = hearing_clips(encoder)
        else:
            self.hearing = hearing(encoder) if window == "full" else hearing(encoder).cut()

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stays in evaluation mode: a frozen encoder has no dropout."""
        return super().train(False)

    @property
    def layers(self) -> int:
        """Number of states `forward` gives: the input embedding and one per transformer layer."""
        return self.hearing.layers

    @property
    def width(self) -> int:
        """Width of the states."""
        return self.hearing.width

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, in order."""
        return list(self.encoder.layers if hasattr(self.encoder, "layers") else self.encoder.encoder.layers)

    @torch.no_grad()
    def forward(self, features_C: Tensor, frames_C: Tensor) -> tuple[Tensor, ...]:
        """Features (log-mels [C, M, T] or waveforms [C, T]), each clip's valid frames -> L states, each [C, F, D].

        F is the encoder's window, or with `encoder_window: true` the frames of the longest clip.
        """
        states = self.hearing.states(features_C.to(next(self.encoder.parameters()).dtype), frames_C)
        if self.hearing.silence:
            return states
        behind_CF1 = (torch.arange(states[0].shape[1], device=frames_C.device) >= frames_C[:, None]).unsqueeze(2)
        rest = self.hearing.window - states[0].shape[1] if self.hearing.whole else 0
        return tuple(pad(states_CFD.masked_fill(behind_CF1, 0.0), (0, 0, 0, rest)) for states_CFD in states)


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

    def forward(self, states_LBFD: Sequence[Tensor], apart: bool = False) -> Tensor | LayerStates:
        """L states [B, F, D] -> [B, F, D]; with `apart` the sum is left to the projector, which reads fewer frames."""
        weights_L = torch.softmax(wide(self.logits_L), 0)
        return LayerStates(states_LBFD, weights_L, self.normalise) if apart else layer_sum(states_LBFD, weights_L, self.normalise)


EncoderStates = Literal["weighted_sum", "last"]
"""Which encoder states a projector is given: a learned sum of all, or the last one"""


class LastLayer(nn.Module):
    """The encoder's last state as it is (after the encoder's own final norm); nothing to learn."""

    def forward(self, states_LBFD: Sequence[Tensor], apart: bool = False) -> Tensor:
        """L states [B, F, D] -> [B, F, D]; there is nothing to sum."""
        return states_LBFD[-1]


def layer_mix(mixed: EncoderStates, layers: int, normalise: bool) -> LayerMix | LastLayer:
    """The module between an encoder that returns `layers` states and a projector."""
    return LastLayer() if mixed == "last" else LayerMix(layers, normalise)


class Features:
    """Computes an encoder's input from clips, as its `preprocessor_config.json` says: log-mels, or normalised waveforms."""

    def __init__(self, extractor: Any) -> None:
        """`extractor`: a transformers `WhisperFeatureExtractor` or `Wav2Vec2FeatureExtractor`."""
        self.extractor = extractor
        self.mels = hasattr(extractor, "n_samples")
        self.window_seconds = min(WINDOW_S, extractor.n_samples / SAMPLE_RATE) if self.mels else WINDOW_S

    def __call__(self, clips: Sequence[np.ndarray], samples: int, ends: Sequence[int] | None = None) -> Tensor:
        """Mono 16 kHz clips -> log-mels [C, M, T] or waveforms [C, samples], padded with silence to `samples`, never cut.

        `ends`: samples up to which each clip has silence behind it; from there on log-mels are zero.
        """
        assert all(clip.size <= samples for clip in clips), "longer clips are refused before"
        if ends is not None:
            return self._alone(clips, samples, ends)
        options: dict[str, Any] = {"sampling_rate": SAMPLE_RATE, "return_tensors": "pt", "padding": "max_length", "max_length": samples}
        if self.mels:
            # A spectrum is mirrored at its end: with silence behind, columns are those of a clip in its whole window.
            options["max_length"] = samples + self.extractor.n_fft if samples < self.extractor.n_samples else samples
            features: Tensor = self.extractor(list(clips), **options)["input_features"][:, :, : samples // MEL_SAMPLES]
            return features
        values: Tensor = self.extractor(list(clips), return_attention_mask=True, **options)["input_values"]
        return values

    def _alone(self, clips: Sequence[np.ndarray], samples: int, ends: Sequence[int]) -> Tensor:
        """Each clip's log-mels by itself: its spectrum is mirrored at its own end."""
        options: dict[str, Any] = {"sampling_rate": SAMPLE_RATE, "return_tensors": "pt", "padding": "max_length"}
        each = [self.extractor([clip], max_length=end, **options)["input_features"] for clip, end in zip(clips, ends, strict=True)]
        return torch.cat([pad(mels_1MT, (0, samples // MEL_SAMPLES - mels_1MT.shape[2])) for mels_1MT in each])
