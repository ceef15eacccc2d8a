"""One interface to the supported speech encoders: every layer's states, and the number of frames of a clip.

    whisper        log-mels of a fixed window, silence and all                50 frames a second    1 frame: 320 samples
    qwen2_audio    Whisper's, but silence is masked, and pairs are averaged   25                     640
    qwen2_5_omni   the same in blocks of 2 s, without a window of its own     25                     640
    wavlm, hubert, wav2vec2     the waveform itself, without a window         50                     320
The number of frames is rounded up: silence fills the last frame, which is never dropped. The states of a clip are those that transformers
computes for the clip with that silence behind it, whatever its neighbours in the batch are. Behind them stand zeros; with Whisper, whose
window includes silence, the states of that silence. With `encoder_window: true` the window of a batch ends with its longest clip: there
Whisper hears silence only up to that, so that a clip's states depend on how far it is padded. With `encoder_window: clip` Whisper hears the
clip alone, as in Ultravox: nothing stands behind its last whole frame, and states do not depend on neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from speechkd.core.errors import InputError

WAVEFORM = ("hubert", "wav2vec2", "wavlm")
SPEECH_LLMS = ("qwen2_audio", "qwen2_5_omni", "qwen2_5_omni_thinker")
"""Model types that hold an audio encoder, a projector and a language model"""
ENCODERS = ("whisper", *SPEECH_LLMS, *WAVEFORM)
"""Model types that have an encoder for a student"""
MEL_SAMPLES = 160
"""Samples from one column of a log-mel spectrogram to the next"""

SAMPLE_RATE, WINDOW_S = 16_000, 30
"""Encoders without a window of their own get one as long as Whisper's"""

States = tuple[Tensor, ...]
EncoderWindow = Literal["full", "true", "clip"]
"""`full`: every clip is padded to the encoder's window; `true`: to the longest clip of its batch; `clip`: Whisper hears the clip alone"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """An encoder's sizes, and the function that computes its states."""

    layers: int
    """number of states: the input of the first block, and the output of each block"""
    width: int
    hop: int
    """samples from one frame to the next"""
    overhang: int = 0
    """samples of a frame's receptive field beyond the start of the next frame"""
    window: int
    """frames that the encoder is made for, the most of a clip"""
    whole: bool = True
    """whether a projector receives `window` frames of every clip; otherwise as many as the longest clip of the batch has"""
    behind: int = 0
    """frames of silence that features have behind the longest clip for the convolutions to see, where they do not fill the window"""
    fixed: bool
    """whether features always fill the window; otherwise they have as many frames as the longest clip"""
    silence: bool = False
    """whether the states behind a clip are those of silence, and the projector reads them; otherwise they are zeros"""
    alone: bool = False
    """whether features are of each clip by itself, with zeros instead of silence behind it"""
    states: Callable[[Tensor, Tensor], States]
    """(features, valid frames [C]) -> `layers` x [C, F, D]; frames beyond a clip's are anything"""

    def frames(self, samples: int) -> int:
        """Frames of a clip, rounded up, at least one."""
        return max(1, -(-samples // self.hop))

    def features_of(self, frames: Sequence[int]) -> int:
        """Frames that the features of a batch of clips must have. Raises ValueError for a clip that is longer than the window."""
        longest = max(frames)
        if longest > self.window:
            seconds = [round(count * self.hop / SAMPLE_RATE, 1) for count in (longest, self.window)]
            raise ValueError(f"a clip of {seconds[0]:g} s does not fit the encoder's window of {seconds[1]:g} s")
        return self.window if self.fixed else min(longest + self.behind, self.window)

    def heard(self, frames: Sequence[int]) -> int:
        """Frames that a projector receives of each clip of a batch."""
        given = self.features_of(frames)
        return self.window if self.whole or given == self.window else given - self.behind

    def cut(self) -> Hearing:
        """The same encoder, whose window ends with the longest clip of a batch."""
        return replace(self, whole=False, fixed=False, behind=1 if self.fixed else 0)

    def frames_in(self, features: Tensor) -> int:
        """Frames of each clip that the encoder computes for features [C, M, T] or [C, T]."""
        return int(features.shape[-1] * (MEL_SAMPLES if features.dim() == 3 else 1)) // self.hop

    def samples(self, frames: int) -> int:
        """Samples whose features have exactly `frames` frames."""
        return frames * self.hop + self.overhang


def hearing(encoder: Any) -> Hearing:
    """The interface to an encoder that `architectures.encoder_from` made. Replaces the group norm of a waveform encoder by `ClipNorm`."""
    kind: str = encoder.config.model_type
    if kind in WAVEFORM:
        return _waveform(encoder)
    if kind == "whisper":
        return _whisper(encoder)
    return _omni(encoder) if hasattr(encoder, "ln_post") else _qwen2_audio(encoder)


def hearing_clips(encoder: Any) -> Hearing:
    """The interface to a Whisper encoder that hears a clip alone. Raises InputError for other encoders."""
    from transformers.masking_utils import create_bidirectional_mask

    kind: str = encoder.config.model_type
    if kind != "whisper":
        raise InputError(
            f"`encoder_window: clip` is for Whisper's encoder, is set for `{kind}`, which hears no silence: set it to full or true"
        )

    def states(features_CMT: Tensor, frames_C: Tensor) -> States:
        real_CX = torch.arange(features_CMT.shape[2] // 2, device=frames_C.device) < frames_C[:, None]
        real_C1T = real_CX.repeat_interleave(2, 1)[:, None]
        inner_CDT = gelu(encoder.conv1(features_CMT)).masked_fill(~real_C1T, 0.0)  # as if it ended with the clip
        first_CXD = gelu(encoder.conv2(inner_CDT)).transpose(1, 2)
        first_CXD = first_CXD + encoder.embed_positions(torch.arange(first_CXD.shape[1], device=frames_C.device))
        mask = create_bidirectional_mask(config=encoder.config, inputs_embeds=first_CXD, attention_mask=real_CX.long())
        *inner, last = _block_states(encoder, first_CXD, mask)
        return (*inner, encoder.layer_norm(last))

    return replace(_whisper(encoder), whole=False, fixed=False, silence=False, alone=True, states=states)


def _whisper(encoder: Any) -> Hearing:
    def states(features_CMT: Tensor, frames_C: Tensor) -> States:
        *inner, last = _block_states(encoder, _positioned(encoder, features_CMT, 1), None)
        return (*inner, encoder.layer_norm(last))

    config = encoder.config
    return Hearing(
        layers=config.encoder_layers + 1,
        width=config.d_model,
        hop=2 * MEL_SAMPLES,
        window=int(config.max_source_positions),
        fixed=True,
        silence=True,
        states=states,
    )


def _qwen2_audio(encoder: Any) -> Hearing:
    from transformers.masking_utils import create_bidirectional_mask

    def states(features_CMT: Tensor, frames_C: Tensor) -> States:
        first_CXD = _positioned(encoder, features_CMT, 2)
        real_CX = (torch.arange(first_CXD.shape[1], device=frames_C.device) < 2 * frames_C[:, None]).long()
        mask = create_bidirectional_mask(config=encoder.config, inputs_embeds=first_CXD, attention_mask=real_CX)
        *inner, last = map(_pairs, _block_states(encoder, first_CXD, mask))
        return (*inner, encoder.layer_norm(last))

    config = encoder.config
    return Hearing(
        layers=config.encoder_layers + 1,
        width=config.d_model,
        hop=4 * MEL_SAMPLES,
        window=int(config.max_source_positions) // 2,
        fixed=True,
        states=states,
    )


def _positioned(encoder: Any, features_CMT: Tensor, behind: int) -> Tensor:
    """The input of the first block [C, X, D], with positions cut to its length. Features below the window end with `behind` of silence.

    The `forward` of transformers refuses such features; so modules are called one by one here, in which ZeRO-3 gathers as in that.
    """
    states_CXD = gelu(encoder.conv2(gelu(encoder.conv1(features_CMT)))).transpose(1, 2)
    if states_CXD.shape[1] < encoder.config.max_source_positions:
        states_CXD = states_CXD[:, :-behind]
    position_X = torch.arange(states_CXD.shape[1], device=states_CXD.device)
    positioned: Tensor = states_CXD + encoder.embed_positions(position_X)
    return positioned


def _block_states(encoder: Any, states_CXD: Tensor, mask: Any) -> Iterator[Tensor]:
    """The input of the first block, and the output of each. `mask`: as transformers makes it, None for none."""
    yield states_CXD
    for block in encoder.layers:
        states_CXD = block(states_CXD, mask)
        yield states_CXD


def _omni(encoder: Any) -> Hearing:
    def states(features_CMT: Tensor, frames_C: Tensor) -> States:
        mels_C = 4 * frames_C
        real_CT = torch.arange(features_CMT.shape[2], device=frames_C.device) < mels_C[:, None]
        packed_MX = features_CMT.transpose(1, 2)[real_CT].T  # transformers packs clips one behind the other
        out = encoder(packed_MX, feature_lens=mels_C, output_hidden_states=True).hidden_states
        filled_CX = real_CT[:, ::2]
        *inner, last = (_pairs(_unpacked(states_XD, filled_CX)) for states_XD in out)
        return (*inner, encoder.ln_post(last))

    config = encoder.config
    hop = 4 * MEL_SAMPLES
    window = WINDOW_S * SAMPLE_RATE // hop
    return Hearing(layers=config.encoder_layers + 1, width=config.d_model, hop=hop, window=window, fixed=False, states=states)


def _unpacked(states_XD: Tensor, filled_CF: Tensor) -> Tensor:
    empty_CFD = states_XD.new_zeros(*filled_CF.shape, states_XD.shape[1])
    return empty_CFD.masked_scatter(filled_CF[:, :, None], states_XD)


def _pairs(states_CXD: Tensor) -> Tensor:
    """Means of neighbours: [C, 2F, D] -> [C, F, D]."""
    C, X, D = states_CXD.shape
    return states_CXD.view(C, X // 2, 2, D).mean(2)


def _waveform(encoder: Any) -> Hearing:
    config = encoder.config
    hop = math.prod(config.conv_stride)
    heard, step = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        heard, step = heard + (kernel - 1) * step, step * stride
    first = encoder.feature_extractor.conv_layers[0]
    if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
        first.layer_norm = ClipNorm(first.layer_norm)

    def states(features_CT: Tensor, frames_C: Tensor) -> States:
        samples_C = frames_C * hop + (heard - hop)
        if isinstance(first.layer_norm, ClipNorm):
            first.layer_norm.lengths_C = (samples_C - config.conv_kernel[0]) // config.conv_stride[0] + 1
        mask_CT = (torch.arange(features_CT.shape[1], device=frames_C.device) < samples_C[:, None]).long()
        out = encoder(features_CT, attention_mask=mask_CT, output_hidden_states=True)
        return (*out.hidden_states[:-1], out.last_hidden_state)  # after the last norm, where the architecture ends with one

    return Hearing(
        layers=config.num_hidden_layers + 1,
        width=int(config.hidden_size),
        hop=hop,
        overhang=heard - hop,
        window=WINDOW_S * SAMPLE_RATE // hop,
        fixed=False,
        states=states,
    )


class ClipNorm(nn.Module):
    """A waveform encoder's first norm (one group a channel) over each clip's own time, not over the silence that pads it in a batch.

    Parameters are those of the `GroupNorm` that it replaces, under the same names.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        assert norm.num_groups == norm.num_channels, "one group a channel"
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.lengths_C: Tensor | None = None

    def forward(self, x_CDT: Tensor) -> Tensor:
        """[C, D, T] -> [C, D, T]; positions from `lengths_C` on are anything."""
        assert self.lengths_C is not None, "set before each pass"
        real_C1T = (torch.arange(x_CDT.shape[2], device=x_CDT.device) < self.lengths_C[:, None])[:, None]
        count_C11 = self.lengths_C[:, None, None].float()
        wide_CDT = x_CDT.float()
        mean_CD1 = (wide_CDT * real_C1T).sum(2, keepdim=True) / count_C11
        centred_CDT = wide_CDT - mean_CD1
        var_CD1 = (centred_CDT.square() * real_C1T).sum(2, keepdim=True) / count_C11
        normed_CDT = (centred_CDT * torch.rsqrt(var_CD1 + self.eps)).to(x_CDT.dtype)
        return normed_CDT * self.weight[None, :, None] + self.bias[None, :, None]
