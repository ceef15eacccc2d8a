"""The distiller: a teacher that is the student says zero, stored and live are one, counts come from the batch, calls from the recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkd.core.types import Batch, TeacherSignals
from speechkd.data.columns.signals import HiddenStore, SignalsConfig, TopKStore, decode
from speechkd.losses.positions import predicting_positions
from speechkd.models.collate import Row
from speechkd.models.lora import lora_layers
from speechkd.teachers.scoring import ScoredResponse, Scorer
from speechkd.train.distiller import Distiller, StoredStates
from tests.contracts.cases import CASES, LORA
from tests.contracts.tiny import STREAMS, Case, D, V, collator, distiller_of, rows

KL = {"kl": {"kind": "divergence", "teacher": "self", "temperature": 2.0, "t2_scale": True}}


def read_rows(case: Case) -> list[Row]:
    """Text->text: the student reads what the teacher reads."""
    found = []
    for row in rows(case, 5, ""):
        if row.stream == STREAMS.index("kd/text"):
            found.append(Row(row.reads["self"], [], row.response, None, stream=row.stream, reads=row.reads))
    return found


@pytest.mark.parametrize("lora", [None, LORA])
def test_text_to_text_with_its_own_llm_as_teacher_has_exactly_zero_kl_at_step_0(lora: dict[str, Any] | None) -> None:
    case = Case(KL, lora=lora)
    distiller = distiller_of(case)
    for layer in lora_layers(distiller).values():  # as it is before the first step
        layer.lora_B.data.zero_()
    batch = collator(distiller, case)(read_rows(case))
    out: Any = distiller(batch)
    assert out["kl"].count > 0 and float(out["kl"].total.detach()) == 0.0
    if lora:
        for layer in lora_layers(distiller).values():
            layer.lora_B.data.fill_(0.1)
        moved: Any = distiller(batch)
        assert float(moved["kl"].total.detach()) > 1e-3, "with LoRA trained the teacher is still the model as loaded"


def stored(distiller: Distiller, found: list[Row], k: int) -> list[Row]:
    """The same rows with what a column would hold of this very teacher: scored, encoded, decoded."""
    signals = SignalsConfig(topk=TopKStore(k=k, temperature=1.5, bits=32))
    scorer = Scorer(distiller.student.llm.lm, signals)
    scored = scorer.score([ScoredResponse(list(row.reads["self"]), list(row.response), str(i)) for i, row in enumerate(found)])
    out = []
    for row, tensors in zip(found, scored, strict=True):
        given = decode(signals, {"topk"}, tensors, len(row.response), V)
        out.append(Row(row.before, row.after, row.response, row.samples_T, given, row.stream, reads=row.reads))
    return out


@pytest.mark.parametrize("k", [5, V])
def test_stored_and_live_teachers_give_the_same_loss_and_gradient(k: int) -> None:
    block = {"kind": "topk_kl", "temperature": 1.5, "streams": ["kd", "kd/text"]}
    live, column = Case({"topk": block | {"teacher": "self", "k": k}}), Case({"topk": block})
    first, second = distiller_of(live), distiller_of(column)
    found = [row for row in rows(live, 3, "") if "self" in row.reads]
    one: Any = first(collator(first, live)(found))
    make = collator(second, column)
    zeros = {name: tensor.new_zeros(1, *([k] if tensor.dim() > 1 else [])) for name, tensor in make.signals.items()}
    other: Any = second(replace(make, signals=TeacherSignals(**zeros))(stored(first, found, k)))
    assert one["topk"].count == other["topk"].count > 0
    torch.testing.assert_close(one["topk"].total, other["topk"].total, rtol=1e-5, atol=1e-5)
    one["topk"].total.backward()
    other["topk"].total.backward()
    for (name, ours), (_, theirs) in zip(first.student.trainable(), second.student.trainable(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)
    if k == V:  # nothing is cut off: it is the whole divergence
        dense = Case({"kl": KL["kl"] | {"temperature": 1.5, "t2_scale": False, "streams": block["streams"]}})
        third = distiller_of(dense)
        whole: Any = third(collator(third, dense)(found))
        torch.testing.assert_close(one["topk"].total, whole["kl"].total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("representation", ["cka", "hidden", "linear"])
def test_stored_and_live_layers_give_the_same_loss_and_gradient(representation: str) -> None:
    block = {"kind": "layer_wise", "representation": representation, "map": [[1, 1], [2, 2]], "streams": ["kd", "kd/text"]}
    kept_layers = StoredStates(layers=(1, 2), depth=2, width=D)
    live, column = Case({"layers": block | {"teacher": "self"}}), Case({"layers": block}, stored=kept_layers)
    first, second = distiller_of(live), distiller_of(column)
    for ours, theirs in zip(first.parts.parameters(), second.parts.parameters(), strict=True):
        theirs.data.copy_(ours.data)  # what the loss itself learns
    found = [row for row in rows(live, 3, "") if "self" in row.reads]
    signals = SignalsConfig(hidden=HiddenStore(layers=[1, 2], dtype="float32"))
    forced = [ScoredResponse(list(row.reads["self"]), list(row.response), str(i)) for i, row in enumerate(found)]
    kept = [
        replace(row, signals=decode(signals, {"hidden"}, tensors, len(row.response), V), reads={})
        for row, tensors in zip(found, Scorer(first.student.llm.lm, signals).score(forced), strict=True)
    ]
    one: Any = first(collator(first, live)(found))
    other: Any = second(collator(second, column)(kept))
    assert one["layers"].count == other["layers"].count > 0 and float(one["layers"].total.detach()) > 1e-3
    torch.testing.assert_close(one["layers"].total, other["layers"].total, rtol=1e-5, atol=1e-5)
    one["layers"].total.backward()
    other["layers"].total.backward()
    for (name, ours), (_, theirs) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_a_loss_counts_its_roles_alone() -> None:
    case = CASES["everything"]
    distiller = distiller_of(case)
    make, found = collator(distiller, case), rows(case, 7, "")
    counts = dict(zip(distiller.losses, distiller.counts(make(found)).tolist(), strict=True))
    tokens = {s: sum(len(r.response) for r in found if STREAMS[r.stream] == s) for s in STREAMS}
    assert counts["response_ce"] == sum(tokens.values())
    assert counts["divergence"] == tokens["kd"] + tokens["kd/text"]
    assert counts["cka"] == 2, "two clips of the stream kd"
    nothing = dict(zip(distiller.losses, distiller.counts(make([])).tolist(), strict=True))
    assert not any(nothing.values())


def calls_of(distiller: Distiller, batch: Batch) -> list[str]:
    names = {id(module): name for name, module in distiller.named_modules()}
    calls: list[str] = []
    hooks = [m.register_forward_hook(lambda m, i, o: calls.append(names[id(m)])) for m in distiller.modules()]
    try:
        out: Any = distiller(batch)
        torch.stack([loss.total for loss in out.values()]).sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


@pytest.mark.parametrize("name", ["everything", "plora", "bridges"])
def test_the_sequence_of_module_calls_is_a_function_of_the_recipe(name: str) -> None:
    case = CASES[name]
    distiller = distiller_of(case)
    make = collator(distiller, case)
    seen = [calls_of(distiller, make(rows(case, 11, without))) for without in ("", "kd", "kd/text", "audio", "wider", "all")]
    assert all(calls == seen[0] for calls in seen) and len(seen[0]) > 20


def test_every_trained_parameter_has_a_gradient_even_of_an_empty_batch() -> None:
    case = CASES["everything"]
    distiller = distiller_of(case)
    out: Any = distiller(collator(distiller, case)([]))
    torch.stack([loss.total for loss in out.values()]).sum().backward()
    for name, param in distiller.named_parameters():
        if param.requires_grad:
            assert param.grad is not None and not param.grad.any(), name


def test_the_snapshot_stays_what_the_student_was() -> None:
    case = Case({"acoustic": {"kind": "acoustic_snapshot", "teacher": "snapshot"}})
    distiller = distiller_of(case)
    snapshot: Any = distiller.teachers["snapshot"]
    before = [p.clone() for p in snapshot.parameters()]
    for param in snapshot.parameters():
        assert not param.requires_grad
    with torch.no_grad():
        for (_, ours), kept in zip(distiller.student.projector.named_parameters(), snapshot.projector.parameters(), strict=True):
            ours.copy_(kept)
        for ours, kept in zip(distiller.student.mix.parameters(), snapshot.mix.parameters(), strict=True):
            ours.copy_(kept)
    out: Any = distiller(collator(distiller, case)(rows(case, 2, "")))
    assert abs(float(out["acoustic"].total.detach())) < 1e-6 and out["acoustic"].count > 0
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot.parameters(), strict=True))


def test_attention_weights_are_those_of_the_response_over_the_audio() -> None:
    """The recorded weights against the definition, computed row by row from the model's own attentions."""
    case = Case({"cka": {"kind": "attn_cka", "teacher": "hearing"}})
    distiller = distiller_of(case)
    hearing: Any = distiller.teachers["hearing"]
    batch = collator(distiller, case)(rows(case, 4, ""))
    encoded = distiller.student.encoder(batch.features_BMT, batch.clips.frames_C)
    seen = hearing.outputs(distiller.student, batch, encoded, False, True)
    audio = hearing.projector(hearing.mix(encoded))
    from speechkd.models.student import place_audio

    embedded = place_audio(hearing.other_llm.embed(batch.ids_BS), batch, audio)
    positions = (batch.mask_BS.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        out = hearing.other_llm.lm.base_model(
            inputs_embeds=embedded, attention_mask=batch.mask_BS, position_ids=positions, use_cache=False, output_attentions=True
        )
    last_BSS, S = out.attentions[-1].mean(1), batch.ids_BS.shape[1]
    Q = batch.clips.mask_CQ.shape[1]
    wanted: Tensor = torch.zeros_like(seen.attention_CQ)
    for to, come in zip(batch.audio_to_A.tolist(), batch.audio_from_A.tolist(), strict=True):
        other_llm = [r % S for r in batch.response_T.tolist() if r // S == to // S]
        wanted[come // Q, come % Q] = sum(last_BSS[to // S, r, to % S] for r in other_llm)
    torch.testing.assert_close(seen.attention_CQ, wanted)
    assert predicting_positions(batch.response_T).shape == batch.response_T.shape


@pytest.mark.parametrize("name", ["everything", "cka-plain", "loss-contrastive", "projector-linear", "projector-windowed_qformer"])
def test_no_loss_reads_a_projected_position_behind_its_clip(name: str) -> None:
    """So projectors need not compute these: whatever stands there, of student and of teachers, every loss is the same, bit for bit."""
    case = CASES[name]
    distiller = distiller_of(case)
    batch = collator(distiller, case)(rows(case, 2, ""))
    plain: Any = distiller(batch)
    for part in distiller.modules():
        if hasattr(part, "positions"):
            part.register_forward_hook(lambda _, __, out_CQE: out_CQE.masked_fill(~batch.clips.mask_CQ.unsqueeze(2), torch.nan))
    filled: Any = distiller(batch)
    assert not batch.clips.mask_CQ.all() and batch.clips.mask_CQ.sum() == len(batch.audio_from_A)
    assert all(torch.equal(filled[loss].total, plain[loss].total) for loss in distiller.losses)
