"""Every objective and regime of every recipe that ships, as what is set over the file; tests/consistency sees to it that none lacks."""

from __future__ import annotations

from pathlib import Path

PIPELINES = Path(__file__).parents[2] / "pipelines"
PUBLISHED = {"wong26a.yaml", *(p.name for p in PIPELINES.glob("*_paper.yaml"))}  # with other models and corpora: SMALL
RECIPES = sorted(p.name for p in PIPELINES.glob("*.yaml") if p.name not in PUBLISHED)
LAYER_AC = "objective=layer_ac student.encoder_states=weighted_sum student.normalise_layers=true student.init_from=EXPORT"
CHANGES = [
    ("cross_modal.yaml", "objective=ce"),
    ("source_layer.yaml", "objective=skip"),
    ("source_layer.yaml", "objective=top"),
    ("source_layer.yaml", LAYER_AC),
    ("pl_distill.yaml", "objective=rkl"),
    ("pl_distill.yaml", "objective=ldist_cka"),
    ("lang_aware.yaml", "student.projector.choice=soft"),
    ("meta_prompt_kd.yaml", "train.regime=mix"),
    ("topk_kd.yaml", "objective=sampled"),
    ("topk_kd.yaml", "train.regime=mix"),
]
TRAINED = [  # the other objectives and regimes; what they export differs in nothing from the above
    ("caad.yaml", "objective=ce train.regime=mix"),
    ("cross_modal.yaml", "train.regime=kd"),
    ("diva.yaml", "objective=input train.regime=ift"),
    ("diva.yaml", "objective=output train.regime=kd_ift"),
    ("lang_aware.yaml", "objective=mldiva 'student.projector={kind: qformer, queries: 8, layers: 1, heads: 4, causal: true}'"),
    ("meta_prompt_kd.yaml", "train.regime=ift"),
    ("meta_prompt_kd.yaml", "train.regime=kd_ift"),
    ("pl_distill.yaml", "objective=sft train.regime=kd"),
    ("pl_distill.yaml", "objective=fkl train.regime=mix"),
    ("pl_distill.yaml", "objective=ldist train.regime=kd_ift"),
    ("source_layer.yaml", "objective=sft train.regime=mix"),
    ("topk_kd.yaml", "objective=ce train.regime=kd_ift"),
]
EVERY = [*((name, "") for name in RECIPES), *CHANGES, *TRAINED]

QFORMER = "student.projector={kind: qformer, queries: 256, layers: 2, heads: 2, causal: true, init_from: MODELS/whisper}"
OMNI = ["student.encoder=MODELS/omni", "student.llm=MODELS/omni", "student.projector.init_from=MODELS/omni"]
SMALL: dict[str, list[str]] = {
    "wong26a": [
        "student.encoder=standins/encoder",
        "student.llm=MODELS/gemma2",
        "teachers.kd.model=MODELS/brief",
    ],
    "lang_aware_paper": [
        "student.encoder=MODELS/whisper",
        "student.llm=MODELS/llama",
        "student.projector.init_from=MODELS/whisper",
        "student.projector.layers=2",
        "student.projector.heads=2",
    ],
    "cross_modal_paper": [
        *OMNI,
        "teachers.kd.model=MODELS/brief",
        "live.reader.model=MODELS/qwen2",
        "data.corpora.0.card=CARDS/open_orca_spoken.yaml",
    ],
    "source_layer_paper": [*OMNI, "live.reader.model=MODELS/qwen3", "live.reader.reads.column=echo", "data.corpora.0.card=CARDS/cota.yaml"],
    "pl_distill_paper": ["student.encoder=MODELS/qwen2_audio", "student.llm=MODELS/qwen2", "live.hearer.model=MODELS/qwen2_audio"],
}
"""By recipe: smaller models, a teacher whose answers end, and a corpus of which every split has something"""
OTHERS: dict[str, list[list[str]]] = {
    "wong26a": [[f"train.regime={regime}"] for regime in ("ift", "mix", "kd_ift")],
    "lang_aware_paper": [["student.projector.choice=soft"], ["objective=mldiva", QFORMER]],
    "cross_modal_paper": [["train.regime=ift"], ["objective=ce"]],
    "source_layer_paper": [[f"objective={name}"] for name in ("sft", "top", "skip", "layer")],
    "pl_distill_paper": [[f"objective={name}"] for name in ("sft", "fkl", "rkl", "ldist", "ldist_cka")],
}
"""By recipe: its other objectives and regimes, trained under ZeRO-3 at threshold 0"""
