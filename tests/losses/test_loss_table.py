"""Table entries: known needs, missing signals named, unknown names answered, nothing heavy imported."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.core.types import SIGNALS
from speechkd.kernels.logits import Head
from speechkd.losses import LOSSES, ClipLoss, HeadLoss, LayerLoss, Loss, Supervision
from speechkd.losses.base import ClipFacts, Clips, LayerConfig, Layers

ONE = torch.ones(1, dtype=torch.bool)
STUDENT = {HeadLoss: {"head"}, LayerLoss: {"hidden"}, ClipLoss: {"projected"}}


def bare(part: Loss, config: Any) -> None:
    """Run a loss on a batch and a teacher that show nothing but what every one does."""
    states = torch.zeros(1, 3)
    if isinstance(part, HeadLoss):
        part.loss(Head(states, torch.zeros(5, 3)), Supervision(mask_T=ONE), config)
    elif isinstance(part, ClipLoss):
        part.loss(Clips(projected_CQD=states[None]), None, ClipFacts(keep_C=ONE, mask_CQ=ONE[None]), config)
    else:
        layers = Layers(states=[states])
        part.loss(layers, layers, ONE, None, config, None)


@pytest.mark.parametrize("name", list(LOSSES))
def test_entries_declare_known_needs_and_name_a_missing_signal(name: str) -> None:
    part = LOSSES.get(name)
    config = part.Config()
    needs = config.needs()
    assert needs.stored | needs.live <= set(SIGNALS)
    assert STUDENT[type(part)] <= needs.student <= {"head", "hidden", "projected", "gate", "words"}
    assert config.weight > 0 and config.streams == []
    if name == "acoustic_snapshot":
        return  # states are what every layer loss is given
    with pytest.raises(InputError, match=f"`{name}` needs the signal"):
        bare(part, config)


@pytest.mark.parametrize("name", [name for name in LOSSES if isinstance(LOSSES.get(name), LayerLoss)])
def test_layer_losses_say_which_layers_they_read(name: str) -> None:
    config = LOSSES.get(name).Config.model_validate({"every": 2})
    assert isinstance(config, LayerConfig)
    assert [i for i, _ in config.pairs(6, 6)] == [2, 4, 6]
    assert isinstance(config.lens, bool)
    with pytest.raises(InputError, match="`every` must be between 0"):
        config.pairs(1, 1)


def test_a_written_map_is_checked() -> None:
    config = LOSSES.get("layer_wise").Config.model_validate({"map": [[1, 2], [4, 9]]})
    assert isinstance(config, LayerConfig)
    assert config.pairs(4, 9) == [(1, 2), (4, 9)]
    with pytest.raises(InputError, match="layer map 4->9 is out of range: student layers 1..4, teacher layers 1..8"):
        config.pairs(4, 8)


def test_unknown_loss_and_key_are_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean `topk_kl`"):
        LOSSES.get("topkl")
    with pytest.raises(ValueError, match="did you mean `temperature`"):
        LOSSES.get("topk_kl").Config.model_validate({"temprature": 2.0})


def test_import_loads_no_transformers() -> None:
    code = (
        "import sys, speechkd.losses as l; [l.LOSSES.get(n) for n in l.LOSSES]; "
        "bad = {'transformers', 'deepspeed'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
