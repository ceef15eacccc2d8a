"""A live teacher that reads another column: the words about this very clip, and only examples whose clip has some."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechkd.core.errors import InputError
from speechkd.data.reader import Reader
from speechkd.data.shards.index import open_shards
from speechkd.models.exported import load_tokenizer
from speechkd.models.prompt import Prompt
from speechkd.recipe import load_recipe
from speechkd.stages.inputs.columns import ColumnText
from speechkd.stages.inputs.corpora import Corpus
from speechkd.stages.inputs.prompt import teacher_prompts
from speechkd.stages.inputs.rows import RowMaker, compared_with
from speechkd.stages.inputs.sources import TrainSource
from speechkd.stages.shard import shard
from tests.data.corpus import write_card, write_echo, write_tones

ROOT = Path(__file__).parents[3]
READS = "live.reader={kind: text_llm, model: standins/llm, reads: {form: column, column: echo}}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("tones")
    root = shard(write_card(folder, write_tones(folder)), folder / "out", quiet=True)
    write_echo(open_shards(root))
    shards = open_shards(root)
    recipe = load_recipe(ROOT / "pipelines/meta_prompt_kd.yaml")
    return Corpus(recipe.data.corpora[0], shards.card, shards)


def test_every_example_is_read_the_words_about_its_own_clip(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(Path("pipelines/source_layer.yaml"), [READS, "objective=top"])
    assert compared_with(recipe.losses, "kd") == ["reader"]
    prompt = Prompt((ROOT / "shards/prompts/meta_prompt.j2").read_text().rstrip("\n"), load_tokenizer("standins/llm"))
    make = RowMaker(recipe, prompt, teacher_prompts(recipe.live, prompt, recipe.prompt.template))
    reader = Reader(corpus.shards, corpus.shards.column("echo"))
    train_source = TrainSource("kd", corpus, reader, reader.source("kd"), column_texts={"echo": ColumnText(corpus, "echo", "here")})
    read = [train_source.plan_source.row(i) for i in range(len(train_source.plan_source))]
    assert len(read) > corpus.shards.shards, "more than one shard, more than one turn a clip"
    for row in read:
        example = reader.read(row, hear=False)
        message = prompt.tokenizer.decode(make(0, example, train_source.words(row)).reads["reader"])
        assert f"it is {example.key}" in message and example.question in message


def test_clips_without_words_are_left_out_and_the_plan_knows_whose_words(corpus: Corpus) -> None:
    reader = Reader(corpus.shards, corpus.shards.column("echo"))
    described, source = ColumnText(corpus, "echo", "here"), reader.source("kd")
    kept = described.keep(source, reader, "here")
    assert len(kept) == len(source) and kept.digest != source.digest
    described._row_N[:2] = -1
    fewer = described.keep(source, reader, "here")
    assert 0 < len(fewer) < len(source)
    keys = {reader.read(fewer.row(i), hear=False).key for i in range(len(fewer))}
    assert keys == {reader.read(source.row(i), hear=False).key for i in range(len(source))} - {"c00", "c01"}
    described._row_N[:] = -1
    with pytest.raises(InputError, match="`echo` has no whole answer for any clip of here"):
        described.keep(source, reader, "here")


def test_a_column_that_is_not_there_is_told_with_those_that_are(corpus: Corpus) -> None:
    with pytest.raises(InputError, match="corpus `tones` has no column `ecco`.*it has: echo"):
        ColumnText(corpus, "ecco", "here")


@pytest.mark.parametrize("reads", ["{form: column}", "{form: json, column: echo}"])
def test_a_reading_names_its_column_and_no_other_does(reads: str) -> None:
    with pytest.raises(InputError, match="`column` must be given with `form: column`"):
        load_recipe(ROOT / "pipelines/source_layer.yaml", [f"live.reader={{kind: self, reads: {reads}}}"])
