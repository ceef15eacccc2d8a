"""Data that grew under a run: refused with the way out, accepted in a new epoch, and anything else refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from speechkd.core.errors import InputError
from speechkd.core.files import read_json
from speechkd.data.plan.plan import Plan, PlanConfig
from speechkd.recipe import load_recipe
from speechkd.stages.grown_data import of_this_run
from speechkd.stages.run_folder import CHECKPOINTS, RUN, prepare_run
from speechkd.stages.shard import shard
from speechkd.train.config import Phase
from speechkd.train.schedule import Schedule, Segment
from tests.data.corpus import Rows, write_card
from tests.data.plans import source

ROOT = Path(__file__).parents[2]
ACCEPT = "train.accept_grown_data=true"


def rows(count: int) -> Rows:
    return [{"id": f"t{i:02d}", "part": "train", "transcript": f"number {i}"} for i in range(count)]


CARDS: dict[str, tuple[int, dict[str, str]]] = {"v1": (8, {}), "v2": (12, {"grows": "v1"}), "v9": (9, {})}
"""Number of rows of each version, and what its card says besides"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All versions, published."""
    folder = tmp_path_factory.mktemp("corpus")
    for version in CARDS:
        shard(card(folder, version), folder / "out", quiet=True)
    return folder


def card(folder: Path, version: str) -> Path:
    """The corpus's card, now of this version."""
    count, more = CARDS[version]
    return write_card(folder, rows(count), fields={}, version=version, **more)


class Run:
    """A run folder beside a corpus."""

    def __init__(self, corpus: Path, runs: Path) -> None:
        self.corpus, self.folder = corpus, runs / "run"

    def prepare(self, version: str, plan: str, *sets: str) -> dict[str, Any]:
        """Prepare a start on a version of the corpus, whose plan has this digest; what the folder then says."""
        where = f"data={{root: {self.corpus / 'out'}, corpora: [{{card: {card(self.corpus, version)}}}]}}"
        made = load_recipe(ROOT / "pipelines/meta_prompt_kd.yaml", [where, f"runs={self.folder.parent}", "name=run", *sets])
        prepare_run(self.folder, made, plan, "auto")
        facts: dict[str, Any] = read_json(self.folder / RUN)
        return facts

    def trained(self, step: int, plan: str) -> None:
        """A checkpoint, as far as anyone looks at it here."""
        checkpoint = self.folder / CHECKPOINTS / f"step-{step:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer.json").write_text(json.dumps({"step": step, "adam_step": step, "plan": plan}))


@pytest.fixture
def run(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run on version v1 that is at step 40."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("speechkd.stages.run_folder.latest", lambda folder: max(folder.glob("step-*"), default=None))
    made = Run(corpus, tmp_path)
    made.prepare("v1", "one")
    made.trained(40, "one")
    return made


def test_grown_data_are_refused_with_the_way_out(run: Run) -> None:
    with pytest.raises(InputError, match="which have grown since: `--set train.accept_grown_data=true` begins a new epoch") as refused:
        run.prepare("v2", "two")
    assert "\n" not in str(refused.value)


def test_accepted_they_begin_where_the_run_is(run: Run) -> None:
    facts = run.prepare("v2", "two", ACCEPT)
    assert facts["grown_at"] == 40 and facts["plan"] == "two" and facts["versions"] == {"tones": "v2"}
    assert of_this_run({"plan": "one", "step": 40}, facts) and of_this_run({"plan": "two", "step": 45}, facts)
    assert not of_this_run({"plan": "one", "step": 30}, facts), "its steps to 40 are the earlier data's"
    run.trained(50, "two")
    assert run.prepare("v2", "two") == facts, "asked for once, it goes on"


def test_an_older_checkpoint_than_the_growth_needs_asking_again(run: Run) -> None:
    run.prepare("v2", "two", ACCEPT)
    (run.folder / CHECKPOINTS / "step-000040").rename(run.folder / CHECKPOINTS / "broken")
    run.trained(20, "one")
    with pytest.raises(InputError, match="step-000020` was written before the data grew at step 40"):
        run.prepare("v2", "two")
    assert run.prepare("v2", "two", ACCEPT)["grown_at"] == 20


def test_before_a_checkpoint_it_just_begins_on_the_data_as_they_are(run: Run) -> None:
    (run.folder / CHECKPOINTS / "step-000040").rename(run.folder / CHECKPOINTS / "broken")
    assert run.prepare("v2", "two", ACCEPT)["grown_at"] == 0


def test_data_that_did_not_grow_from_the_runs_are_refused_even_if_asked(run: Run) -> None:
    with pytest.raises(InputError, match="corpus `tones` v9 does not grow its version v1"):
        run.prepare("v9", "nine", ACCEPT)
    with pytest.raises(InputError, match="no corpus has a new version"):
        run.prepare("v1", "other", ACCEPT)


def test_from_there_on_every_epoch_shows_every_example_once() -> None:
    """And the phases after it begin as they do without growth."""
    plans = [Plan(PlanConfig(micro_batches=2, max_examples=3, max_seconds=60, max_tokens=900), [source(30, 4)], seed) for seed in (1, 2)]
    per_epoch = plans[0].steps_per_epoch(0)
    phases = [Phase(name="first", steps=100, mix={}), Phase(name="second", steps=10, mix={})]
    segments = [Segment(phase, plan, [0]) for phase, plan in zip(phases, plans, strict=True)]
    grown, plain = Schedule(segments, grown_at=37), Schedule(segments)
    for epoch in range(2):
        steps = range(37 + epoch * per_epoch, 37 + (epoch + 1) * per_epoch)
        seen = Counter(ref.row for step in steps for micro in grown.share(step, 0, 1) for ref in micro)
        assert seen == Counter(range(30))
    assert [grown.share(step, 0, 1) for step in range(100, 110)] == [plain.share(step, 0, 1) for step in range(100, 110)]
    with pytest.raises(AssertionError, match="belongs to the data as they were"):
        grown.micro_batch(36, 0)
