"""The language gates on real synthetic speech: minibabel through the shipped encoder, known and unseen voices, texts that were held out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speechkd.core.seeds import torch_seed
from speechkd.losses.language_id import language_id
from speechkd.models.encoder import FrozenEncoder, LayerMix
from speechkd.models.pretrained import load_encoder
from speechkd.models.projectors.language_gates import AttentionGate, ConvGate

ROOT = Path(__file__).parents[2]
CLIPS = {"train": 2400, "test_known": 300, "test_unseen": 300}


@pytest.fixture(scope="module")
def corpus() -> dict[str, tuple[Tensor, Tensor]]:
    """Per split: mixed encoder states [N, F, D] and languages [N]; a prefix of each split, in which all classes have their share."""
    sys.path.insert(0, str(ROOT / "standins"))
    try:
        import clips
        import texts
    finally:
        sys.path.pop(0)
    from transformers import WhisperFeatureExtractor

    card = ROOT / "shards/cards/minibabel.yaml"
    source: Any = texts.load_source(card)[0]
    items = source.items()
    languages = sorted(source.config.languages)
    extractor: Any = WhisperFeatureExtractor.from_pretrained(ROOT / "standins/encoder")
    encoder = FrozenEncoder(load_encoder(str(ROOT / "standins/encoder"), torch.float32)).eval()
    mix = LayerMix(encoder.layers, normalise=True)
    out = {}
    for split, count in CLIPS.items():
        chosen = [item for item in items if item.split == split][:count]
        heard = clips.synthesise(card, chosen)
        parts = []
        for start in range(0, count, 100):
            features_CMT = clips.log_mel(extractor, heard[start : start + 100])
            frames_C = torch.full((len(features_CMT),), features_CMT.shape[2] // 2)  # the window whole: silence stands behind a short clip
            parts.append(mix(encoder(features_CMT, frames_C)).detach())
        out[split] = torch.cat(parts), torch.tensor([languages.index(str(item.metadata["language"])) for item in chosen])
    return out


@pytest.mark.system
@pytest.mark.parametrize("kind", [AttentionGate, ConvGate])
def test_gate_accuracy(kind: type[AttentionGate] | type[ConvGate], corpus: dict[str, tuple[Tensor, Tensor]]) -> None:
    """At least 95 % on new utterances of known voices (both gates of the paper pass 94.9 % there), 80 % on voices never heard."""
    states_NFD, language_N = corpus["train"]
    with torch_seed(0, "gate"):
        gate = kind(states_NFD.shape[2], 64, int(language_N.max()) + 1)
        optimiser = torch.optim.AdamW(gate.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=400)
        for _ in range(400):
            pick = torch.randint(len(language_N), (48,))
            out = language_id(gate(states_NFD[pick]), language_N[pick], torch.ones(48, dtype=torch.bool))
            optimiser.zero_grad()
            (out.total / out.count).backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        score = {split: float(np.mean((gate(x).argmax(1) == y).numpy())) for split, (x, y) in corpus.items()}
    print(kind.__name__, score)
    assert score["test_known"] >= 0.95 and score["test_unseen"] >= 0.80
