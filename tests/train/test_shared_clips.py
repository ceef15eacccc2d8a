"""Three turns of a clip are encoded once, and loss and gradients are those of encoding the clip three times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from speechkd.losses import LOSSES
from speechkd.models.collate import Row
from speechkd.stages.inputs.sources import _rows_only
from tests.contracts.cases import CASES
from tests.contracts.tiny import Case, V, collator, distiller_of

CE = {"response_ce": {"weight": 1.0}}


def turns(clips: int, each: int) -> list[Row]:
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(clips):
        clip = generator.normal(size=int(generator.integers(3_000, 20_000))).astype(np.float32)
        ids = [generator.integers(1, V, n).tolist() for n in (3, 2, 4) for _ in range(each)]
        rows += [Row(ids[i], ids[each + i], ids[2 * each + i], clip) for i in range(each)]
    return rows


@pytest.mark.parametrize(
    "case", [Case(CE, lora=CASES["lora"].lora), Case(CE, projector={"kind": "windowed_qformer", "layers": 1, "heads": 2})]
)
def test_loss_and_gradients_are_those_of_encoding_each_turn(case: Case) -> None:
    rows, results = turns(2, 3), []
    for share in (False, True):
        distiller = distiller_of(case)
        batch = replace(collator(distiller, case), share_clips=share)([*rows, Row([1], [2], [3, 4], None)])
        assert batch.features_BMT.shape[0] == (2 if share else 6) and len(batch.clips.frames_C) == (2 if share else 6)
        out: Any = distiller(batch)
        loss = out["response_ce"].total / out["response_ce"].count
        loss.backward()
        results.append((float(loss.detach()), {n: p.grad for n, p in distiller.named_parameters() if p.grad is not None}))
    (apart, wanted), (together, found) = results
    assert together == pytest.approx(apart, rel=1e-6) and wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5)


def test_only_losses_on_responses_let_turns_share_a_clip() -> None:
    def alone(kind: str, **keys: Any) -> bool:
        return _rows_only({kind: LOSSES.get(kind).Config.model_validate({"kind": kind, **keys})})

    assert alone("response_ce") and alone("topk_kl") and alone("layer_wise")
    assert not alone("audio_kl") and not alone("language_id") and not alone("attn_cka"), "these compare clips, of which there were fewer"
