"""The contracts by name: each loss with one projector, each projector with cross-entropy, and a few that mix many."""

from __future__ import annotations

from typing import Any

from speechkd.losses import LOSSES
from speechkd.models.projectors import PROJECTORS
from speechkd.train.distiller import StoredStates
from tests.contracts.tiny import Case, E

LORA = {"r": 2, "alpha": 8, "targets": ["q_proj", "down_proj"]}
TEACHER = {
    "acoustic_snapshot": "snapshot",
    "attn_cka": "hearing",
    "audio_kl": "hearing",
    "contrastive": "self",
    "cross_modal": "self",
    "divergence": "wider",
    "layer_wise": "wider",
    "output_alignment": "self",
}
SMALL = {"layers": 1, "heads": 2, "queries": 4}
PROJECTOR: dict[str, dict[str, Any]] = {
    "gated_mlp": {"stack": 5, "hidden": 10},
    "linear": {"pool": 4},
    "mlp_stack": {"stack": 5, "hidden": 12},
    "qformer": SMALL,
    "query_bank": SMALL | {"languages": ["one", "two"], "gate_hidden": 6},
    "ultravox": {"stack": 5, "hidden": 12},
    "windowed_qformer": {"layers": 1, "heads": 2},
}
GATED = {"kind": "query_bank", **PROJECTOR["query_bank"], "forcing_share": 0.0}


def _block(kind: str) -> dict[str, Any]:
    block: dict[str, Any] = {"kind": kind, "weight": 1.0}
    if kind in TEACHER:
        block["teacher"] = TEACHER[kind]
        block["streams"] = ["kd", "kd/text"]
    if kind == "contrastive":
        block["negative"] = "nothing"
    if kind in ("topk_kl", "sampled_kd"):
        block["streams"] = ["kd", "kd/text"]
    return block


def _losses() -> dict[str, Case]:
    gated = {kind for kind in LOSSES if "gate" in LOSSES.get(kind).Config().needs().student}
    plain = {f"loss-{kind}": Case({kind: _block(kind)}) for kind in LOSSES if kind not in gated}
    return plain | {f"loss-{kind}": Case({kind: _block(kind)}, projector=GATED) for kind in gated}


def _projectors() -> dict[str, Case]:
    """Each with cross-entropy. Teacher forcing is off: it draws for each clip, and ranks draw apart from one process."""
    out = {}
    for kind in PROJECTORS:
        block = GATED if kind == "query_bank" else {"kind": kind, **PROJECTOR[kind]}
        out[f"projector-{kind}"] = Case({"response_ce": {"weight": 1.0}}, projector=block)
    return out


def _mixed() -> dict[str, Case]:
    ce = {"response_ce": {"weight": 1.0}}
    everything = ce | {
        "divergence": _block("divergence"),
        "topk_kl": _block("topk_kl"),
        "layer_wise": _block("layer_wise"),
        "snapshot": _block("acoustic_snapshot"),
        "audio": _block("audio_kl"),
        "cka": _block("attn_cka"),
    }
    return {
        "encoder-wavlm": Case(ce, encoder="wavlm"),
        "encoder-hubert": Case(ce, encoder="hubert"),
        "encoder-qwen2_5_omni": Case(ce, encoder="qwen2_5_omni"),
        "lora": Case(ce | {"cross_modal": _block("cross_modal")}, lora=LORA),
        "plora": Case(ce | {"divergence": _block("divergence")}, lora=LORA | {"scope": "audio"}, recompute="full"),
        "live-topk": Case({"topk_kl": _block("topk_kl") | {"teacher": "self", "k": 7}}, lora=LORA),
        "cka-plain": Case({"attn_cka": _block("attn_cka") | {"attention": False}}),
        "cka-stored": Case({"attn_cka": _block("attn_cka") | {"teacher": "snapshot", "attention": "stored"}}),
        "stored-layers": Case(
            {"layer_wise": {"kind": "layer_wise", "representation": "linear", "map": [[1, 2], [2, 3]], "streams": ["kd", "kd/text"]}},
            stored=StoredStates(layers=(2, 3), depth=3, width=E),
        ),
        "bridges": Case({"layer_wise": _block("layer_wise") | {"representation": "linear"}}),
        "everything": Case(everything, lora=LORA, recompute="selective"),
        "last-layer": Case(
            ce | {"snapshot": _block("acoustic_snapshot")},
            {"kind": "mlp_stack", "stack": 5, "hidden": 12, "norm": True},
            encoder_states="last",
        ),
        "last-layer-gated": Case(ce, {"kind": "gated_mlp", "stack": 7, "hidden": 10}, encoder_states="last"),
        "lora-projector": Case(ce, projector={"kind": "linear", "pool": 4}, lora=LORA | {"targets": ["q_proj", "linear"]}),
    }


CASES: dict[str, Case] = _losses() | _projectors() | _mixed()
EVERYDAY = ["loss-topk_kl", "plora", "everything", "last-layer-gated"]
"""Run by `make test`; each case with an empty rank by `make test-system`; all of them by `make torture`"""
EVERYDAY_WITHOUT = {"loss-topk_kl": ["kd"], "plora": ["audio"], "everything": ["kd/text", "wider", "all"], "last-layer-gated": ["audio"]}
WITHOUT = ["", "kd", "kd/text", "ift", "audio", "all"]


def jobs(names: list[str], without: dict[str, list[str]] | None = None) -> list[tuple[str, str]]:
    """(case, what rank 1 lacks): every stream, all audio, every reading teacher's rows, everything."""
    out = []
    for name in names:
        readers = [t for t in CASES[name].teachers() if t in ("self", "wider")]
        out += [(name, missing) for missing in (without[name] if without else [*WITHOUT, *readers])]
    return out
