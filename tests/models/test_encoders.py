"""Encoders of waveforms: whatever else is in a batch, a clip's states are those that transformers gives for it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechkd.core.errors import DataError, InputError
from speechkd.models.architectures import meta_encoder
from speechkd.models.collate import Collator, Row
from speechkd.models.encoder import Features, FrozenEncoder
from speechkd.models.exported import load_features
from speechkd.models.pretrained import load_encoder
from speechkd.models.projectors import PROJECTORS

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20, "conv_dim": [8] * 7}
POSITIONS = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}  # as the published large ones are
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "wavlm base": ("wavlm", {}),
    "wavlm large": ("wavlm", LARGE),
    "hubert base": ("hubert", {}),
    "hubert large": ("hubert", LARGE),
    "wav2vec2": ("wav2vec2", LARGE),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder as the published ones are: a head for CTC beside the encoder, a feature extractor; and the encoder itself."""
    from transformers import AutoConfig, AutoModelForCTC, Wav2Vec2FeatureExtractor

    kind, more = FAMILIES[request.param]
    torch.manual_seed(0)
    model = AutoModelForCTC.from_config(AutoConfig.for_model(kind, **SMALL, **POSITIONS, **more, vocab_size=9)).eval()
    for param in model.parameters():
        param.data += 0.1 * torch.randn(param.shape)
    folder = tmp_path_factory.mktemp(kind)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=bool(more), return_attention_mask=bool(more)).save_pretrained(folder)
    return folder, model.base_model


def clips() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(0.1, 0.3, size).astype(np.float32) for size in (4_000, 9_601, 320 * 20)]


def test_states_are_those_of_the_clip_alone(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    encoder, features = FrozenEncoder(load_encoder(str(folder), torch.float32)), load_features(str(folder))
    projector: Any = PROJECTORS.get("linear")(PROJECTORS.get("linear").Config.model_validate({}), encoder.width, 4)
    batch = Collator(features, encoder.hearing, projector.positions)([Row([1], [2], [3], clip) for clip in clips()])
    assert batch.clips.frames_C.tolist() == [13, 31, 20], "a last frame that a clip only begins is filled up, not dropped"
    states = encoder(batch.features_BMT, batch.clips.frames_C)
    assert len(states) == encoder.layers == 3 and states[0].shape == (3, 1500, 16)
    for index, clip in enumerate(clips()):
        frames = encoder.hearing.frames(clip.size)
        heard = features([clip], clip.size)  # normalised over what was said
        padded = torch.nn.functional.pad(heard, (0, frames * 320 + 80 - clip.size))
        with torch.no_grad():
            alone = model(padded, output_hidden_states=True)
        assert alone.last_hidden_state.shape[1] == frames
        for ours, expected in zip(states, (*alone.hidden_states[:-1], alone.last_hidden_state), strict=True):
            torch.testing.assert_close(ours[index, :frames], expected[0], atol=2e-5, rtol=1e-5)
            assert not ours[index, frames:].any()


def test_a_dry_run_and_a_batch_without_audio(saved: tuple[Path, Any]) -> None:
    folder = str(saved[0])
    loaded = load_encoder(folder, torch.float32)
    assert sum(p.numel() for p in meta_encoder(folder).parameters()) == sum(p.numel() for p in loaded.parameters())
    encoder = FrozenEncoder(loaded)
    batch = Collator(load_features(folder), encoder.hearing, lambda frames: frames)([])
    assert encoder(batch.features_BMT, batch.clips.frames_C)[0].isfinite().all() and not batch.clips.mask_CQ.any()


def test_what_is_missing_is_told(saved: tuple[Path, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved[0]
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("feature_projection.projection.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(DataError, match="missing tensors, first `feature_projection.projection.weight`"):
        load_encoder(str(tmp_path), torch.float32)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="read as safetensors only"):
        load_encoder(str(tmp_path), torch.float32)


def test_a_clip_beyond_the_window_is_refused() -> None:
    encoder = FrozenEncoder(load_encoder("standins/encoder", torch.float32))
    features: Features = load_features("standins/encoder")
    with pytest.raises(ValueError, match="a clip of 4 s does not fit the encoder's window of 3 s"):
        Collator(features, encoder.hearing, lambda frames: frames)([Row([1], [2], [3], np.zeros(64_000, np.float32))])
