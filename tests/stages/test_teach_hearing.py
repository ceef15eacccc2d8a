"""`speechkd teach` with teachers that hear, with the student's own LLM, and on answers that another column has."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from speechkd.core.errors import InputError
from speechkd.data.columns.column import Column
from speechkd.data.plan.plan import ExampleRef
from speechkd.data.shards.index import ShardSet, open_shards
from speechkd.models.architectures import meta_encoder
from speechkd.models.collate import Collator
from speechkd.models.encoder_families import hearing
from speechkd.recipe import Recipe, load_recipe
from speechkd.stages.inputs.budget import budgets
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.inputs.sources import make_loader, open_train_sources
from speechkd.stages.shard import shard
from speechkd.stages.teach import teach
from tests.data.corpus import write_card, write_tones
from tests.teachers.speech_models import LLM, write_speech_llm, write_student

ROOT = Path(__file__).parents[2]
TASK = {"instruction": "Which instrument?", "field": "speaker", "kind": "choice", "choices": ["organ0", "organ1", "organ2"]}
READS = {"backend": "hf_local", "model": LLM, "fields": ["speaker"], "dtype": "float32", "max_new_tokens": 8}


@pytest.fixture(scope="module")
def speech_llm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_speech_llm(tmp_path_factory.mktemp("qwen2_audio")))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Nine clips and a text-only sample, in three shards."""
    folder = tmp_path_factory.mktemp("room")
    return open_shards(shard(write_card(folder, write_tones(folder), tasks={"instrument": TASK}), folder / "data", quiet=True))


@pytest.fixture
def room(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where card, shards and recipes lie."""
    monkeypatch.chdir(ROOT)
    return Path(str(shards.root)).parents[2]


def recipe(room: Path, kd: dict[str, Any], **over: Any) -> Recipe:
    data = yaml.safe_load((ROOT / "pipelines/meta_prompt_kd.yaml").read_text(encoding="utf-8"))
    data["data"] = {"root": str(room / "data"), "corpora": [{"card": str(room / "card.yaml")}]}
    data["teachers"]["kd"] = kd
    data["student"] |= {"llm": LLM} | over.pop("student", {})
    path = room / "recipe.yaml"
    path.write_text(yaml.safe_dump(data | over), encoding="utf-8")
    return load_recipe(path)


def taught(made: Recipe) -> Column:
    [column] = teach(made)
    assert column is not None and not list(column.verify())
    return column


def test_a_speech_llm_hears_every_clip_and_nothing_else(shards: ShardSet, room: Path, speech_llm: str) -> None:
    """Two turns a clip, none of the text-only sample; the budget knew the size."""
    kd = {"backend": "hf_audio", "model": speech_llm, "dtype": "float32", "max_new_tokens": 8, "signals": {"attention": {}}}
    made = recipe(room, kd)
    [before] = budgets(made)
    column = taught(made)
    heard = {sample.key: sample for sample in shards.samples() if sample.seconds > 0}
    assert column.table["key"].to_pylist() == [key for key in heard for _ in range(2)] and len(heard) == 9
    for row in range(len(column)):
        attention_Q = column.signals(row).attention_CQ[0]
        assert abs(len(attention_Q) - 25 * heard[column.key_of(row)].seconds) <= 1.5 and 0 < attention_Q.sum() <= 1
    assert len({tuple(column.read(row).tokens) for row in range(0, len(column), 2)}) > 4, "other clips, other answers"
    seconds = shards.manifest["totals"]["seconds"]
    assert before.signals["attention"] == pytest.approx(before.turns * 4 * 25 * seconds / 10) and before.prompt_tokens > 25 * seconds
    assert taught(made).digest == column.digest


def test_signals_are_added_to_answers_that_are_there(room: Path, speech_llm: str) -> None:
    """The labels' own answers, scored by an LLM that reads and by one that hears: tokens untouched; AwCKA finds the attention."""
    plain = recipe(room, READS)
    [labels] = teach(plain, roles=["ift"])
    assert labels is not None and labels.manifest["totals"]["examples"] == labels.manifest["totals"]["stop_eos"] == 10
    scores = READS | {"responses": labels.name, "signals": {"topk": {"k": 4}}}
    made = recipe(room, scores, losses={"topk_kl": {"streams": ["kd"]}})
    [planned] = budgets(made)
    read = taught(made)
    assert [read.read(row) for row in range(10)] == [labels.read(row) for row in range(10)]
    assert all(len(read.signals(row).ids_TK) == len(read.read(row).tokens) for row in range(10))
    assert planned.basis.endswith(labels.name + " has") and "scored only" in planned.lines(1.0)[1]
    assert planned.hours(1.0) == pytest.approx((planned.prompt_tokens + planned.response_tokens) / 3600)
    [train_source] = open_train_sources(made, open_prompt(made.prompt, made.student.llm))
    assert len(train_source.plan_source) > 0

    losses = {"ce": {"kind": "response_ce"}, "awcka": {"kind": "attn_cka", "teacher": "hearer", "attention": "stored"}}
    hears = {"backend": "hf_audio", "model": speech_llm, "dtype": "float32", "responses": labels.name, "signals": {"attention": {}}}
    over: dict[str, Any] = {"live": {"hearer": {"kind": "speech", "model": "no/export"}}, "losses": losses}
    made = recipe(room, hears, student={"projector": {"kind": "linear", "pool": 2}}, **over)
    column = taught(made)
    assert column.manifest["totals"]["stop_eos"] == 9, "of the text-only sample there is nothing to hear"
    sources = open_train_sources(made, open_prompt(made.prompt, made.student.llm))
    source = sources[0].plan_source
    heard = hearing(meta_encoder(made.student.encoder))
    with_pool = partial(Collator, lambda clips, samples: torch.zeros(len(clips), 80, samples // 160), heard)
    load = make_loader(made, sources, open_prompt(made.prompt, made.student.llm), with_pool(lambda frames: -(-frames // 2)))
    batch = load([ExampleRef(0, source.row(number)) for number in range(4)])
    attention_CQ = batch.signals.attention_CQ
    assert attention_CQ.shape == batch.clips.mask_CQ.shape and not attention_CQ[~batch.clips.mask_CQ].any()
    for number in range(4):
        stored_Q = column.signals(source.row(number)).attention_CQ[0]
        assert torch.equal(attention_CQ[number, : len(stored_Q)], stored_Q)
    coarse = make_loader(made, sources, open_prompt(made.prompt, made.student.llm), with_pool(lambda frames: -(-frames // 5)))
    with pytest.raises(InputError, match="must hear in equal steps"):
        coarse([ExampleRef(0, source.row(number)) for number in range(4)])


def test_a_loss_that_reads_stored_attention_needs_it_stored(room: Path) -> None:
    losses = {"awcka": {"kind": "attn_cka", "teacher": "hearer", "attention": "stored"}}
    with pytest.raises(InputError, match="loss `awcka` needs `attention`, but teacher `kd` .hf_local. gives `response`"):
        recipe(room, READS, live={"hearer": {"kind": "speech", "model": "no/export"}}, losses=losses)


def test_known_answers_are_taken_only_from_where_they_fit(room: Path) -> None:
    [labels] = teach(recipe(room, READS), roles=["ift"])
    assert labels is not None
    scores = READS | {"responses": labels.name, "signals": {"topk": {"k": 4}}}
    topk: dict[str, Any] = {"losses": {"topk_kl": {"streams": ["kd"]}}}
    with pytest.raises(InputError, match="`responses` takes the answers of .* to add `signals`"):
        recipe(room, READS | {"responses": labels.name})
    with pytest.raises(InputError, match="unknown column `nosuch`|nosuch"):
        teach(recipe(room, scores | {"responses": "nosuch"}, **topk))
    other = yaml.safe_load((ROOT / "pipelines/meta_prompt_kd.yaml").read_text(encoding="utf-8"))["prompt"]
    with pytest.raises(InputError, match="has another prompt than the recipe: .*teachers.kd.responses"):
        teach(recipe(room, scores, prompt=other | {"template": "shards/prompts/spoken.j2"}, **topk))


def test_the_students_own_llm_is_what_the_student_says(room: Path) -> None:
    """`self` names no model, follows the student, and says what `hf_local` on that model says."""
    local = taught(recipe(room, READS))
    student_keys = {name: value for name, value in READS.items() if name not in ("model", "dtype")} | {"backend": "self"}
    made = recipe(room, student_keys)
    column = taught(made)
    assert column.name.startswith("kd-self-") and column.spec.teacher["model"] == LLM and column.spec.teacher["dtype"] == "float32"
    assert column.spec.teacher["fingerprint"] == local.spec.teacher["fingerprint"]
    assert [column.read(row) for row in range(len(column))] == [local.read(row) for row in range(len(local))] and len(column) == 20
    with pytest.raises(InputError, match="teacher `kd` .self. is the student's own LLM .* not `elsewhere`"):
        recipe(room, student_keys | {"model": "elsewhere"})


def test_an_export_teaches_what_it_hears(shards: ShardSet, room: Path, tmp_path: Path) -> None:
    """The column is bound to the very export: another one at the same place is another column."""
    kd = {"backend": "snapshot", "model": str(write_student(tmp_path / "export")), "max_new_tokens": 8, "signals": {"topk": {"k": 4}}}
    made = recipe(room, kd)
    [planned] = budgets(made)
    column = taught(made)
    assert (
        len(column) == 18 and column.name.startswith("kd-snapshot-") and len(column.signals(0).ids_TK) == column.table["tokens"][0].as_py()
    )
    assert planned.prompt_tokens > 10 * shards.manifest["totals"]["seconds"] * 2
    write_student(tmp_path / "export", step=2)
    assert taught(recipe(room, kd)).name != column.name
