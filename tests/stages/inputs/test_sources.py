"""Mixtures: passes of a phase times the weight of a corpus, and corpora that a role does not read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from speechkd.core.errors import InputError
from speechkd.data.reader import Reader
from speechkd.data.shards.index import open_shards
from speechkd.recipe import Recipe, load_recipe
from speechkd.stages.inputs.corpora import Corpus
from speechkd.stages.inputs.sources import TrainSource, make_schedule
from speechkd.stages.shard import shard
from speechkd.stages.teach import teach
from tests.data.corpus import write_card, write_echo, write_tones
from tests.data.plans import epoch_steps

ROOT = Path(__file__).parents[3]


def recipe(*sets: str) -> Recipe:
    return load_recipe(ROOT / "pipelines/meta_prompt_kd.yaml", sets)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    roots = []
    for name in ("one", "two"):
        folder = tmp_path_factory.mktemp(name)
        roots.append(shard(write_card(folder, write_tones(folder), name=name), folder / "out", quiet=True))
        write_echo(open_shards(roots[-1]))
    return roots


def test_phases_and_corpora_weigh_together(corpora: list[Path]) -> None:
    cards = "[{card: one, weights: {ift: 0.5}}, {card: two, weights: {kd: 2}}]"
    made = recipe(f"data.corpora={cards}", "train.regime=mix", "train.regimes.mix=[{name: mix, steps: 7, mix: {kd: 1, ift: 3}}]")
    sources = []
    for role in ("kd", "ift"):
        for config, root in zip(made.data.corpora, corpora, strict=True):
            shards = open_shards(root)
            reader = Reader(shards, shards.column("echo"))
            sources.append(TrainSource(role, Corpus(config, shards.card, shards), reader, reader.source(role, "train")))
    schedule = make_schedule(made, sources)
    (segment,) = schedule.segments
    assert [source.passes for source in segment.plan.sources] == [1, 2, 1.5, 3]
    assert schedule.steps == 7
    seen = Counter(ref.source for epoch in (0, 1) for step in epoch_steps(segment.plan, epoch) for batch in step for ref in batch)
    assert [seen[i] / len(sources[i].plan_source) for i in range(4)] == [2, 4, 3, 6]


def test_a_role_at_zero_neither_reads_nor_teaches_a_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    card = write_card(folder, write_tones(folder), tasks={})
    out = shard(card, tmp_path / "data", quiet=True)
    monkeypatch.chdir(ROOT)
    made = recipe(f"data={{root: {tmp_path / 'data'}, corpora: [{{card: {card}, weights: {{kd: 0}}}}]}}", "train.regime=ift")
    assert teach(made, roles=["kd"]) == [] and open_shards(out).column_names() == []


def test_weights_are_of_known_roles_and_not_all_zero() -> None:
    with pytest.raises(InputError, match="unknown teacher role `kdd`.*did you mean `kd`"):
        recipe("data.corpora=[{card: one, weights: {kdd: 1}}]")
    with pytest.raises(InputError, match="`kd` of regime `kd` has weight 0 in every corpus"):
        recipe("data.corpora=[{card: one, weights: {kd: 0}}]")
