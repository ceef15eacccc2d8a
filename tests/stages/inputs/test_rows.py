"""Rows of a batch from examples of a recipe: what the student reads in the text channel is what its teacher reads, token for token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speechkd.data.reader import Example
from speechkd.models.exported import load_tokenizer
from speechkd.models.prompt import Prompt
from speechkd.recipe import load_recipe
from speechkd.stages.inputs.prompt import teacher_prompts
from speechkd.stages.inputs.rows import RowMaker

ROOT = Path(__file__).parents[3]
METADATA = {"language": "german", "gender": "male", "rate": "slow", "transcript": "eins <AUDIO> zwei"}


def example(turn: str = "task-language", heard: bool = True) -> Example:
    clip = np.zeros(16_000, np.float32) if heard else None
    return Example("k1", turn, METADATA, clip, "What language is spoken?", "german", [5, 6], "eos", {})


def maker(name: str, monkeypatch: pytest.MonkeyPatch, *sets: str) -> tuple[RowMaker, list[str]]:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(Path(f"pipelines/{name}.yaml"), list(sets))
    text = Path(recipe.prompt.template).read_text(encoding="utf-8").rstrip("\n")
    prompt = Prompt(text, load_tokenizer(recipe.student.llm))
    return RowMaker(recipe, prompt, teacher_prompts(recipe.live, prompt, recipe.prompt.template)), recipe.train.streams


def test_the_text_channel_reads_what_the_teacher_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    make, streams = maker("cross_modal", monkeypatch)
    assert streams == ["kd", "kd/text"]
    heard, read = make(0, example()), make(1, example(heard=False))
    assert read.samples_T is None and not read.after
    assert list(read.before) == list(read.reads["reader"]) == list(heard.reads["reader"])
    assert heard.samples_T is not None and len(heard.before) + len(heard.after) < len(read.before)


def test_a_teacher_reads_only_what_some_loss_compares_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    make, streams = maker("combined", monkeypatch)
    assert {stream: set(make(i, example()).reads) for i, stream in enumerate(streams)} == {
        "kd": {"reader"},
        "ift": set(),
        "kd/text": {"reader"},
    }


def test_a_deaf_teacher_reads_nothing_and_a_written_turn_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    make, _ = maker("caad", monkeypatch)
    row = make(0, example())
    informed, deaf = (make.prompt.tokenizer.decode(row.reads[name]) for name in ("reader", "deaf"))
    assert "german" in informed and "german" not in deaf and "What language is spoken?" in deaf
    written = make(0, example("written"))
    assert written.samples_T is None and list(written.before) == list(written.reads["reader"]) == list(row.reads["deaf"])


def test_transcripts_and_languages_reach_those_who_align_them(monkeypatch: pytest.MonkeyPatch) -> None:
    make, _ = maker("lang_aware", monkeypatch)
    row = make(0, example())
    assert row.language == 1, "german is the second of the recipe's languages"
    special = set(make.prompt.tokenizer.get_added_vocab().values())
    assert row.words and not special & set(row.words), "a transcript cannot spell a mark of the template"
    assert not maker("cross_modal", monkeypatch)[0](0, example()).words
