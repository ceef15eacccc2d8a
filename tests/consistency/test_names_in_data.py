"""Every key of a card or recipe that names something of the data refuses a name that the data lacks: exit code 2, one line, nearest name.

The sweep finds all keys that hold text. A new one must be listed here: with a misspelt value, or among those that name nothing in the data.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from speechkd import cli
from speechkd.core.config import apply_sets, dump_yaml
from speechkd.core.errors import InputError
from speechkd.data.cards import Card, list_items, load_card, open_source
from speechkd.data.sources import SOURCES
from speechkd.losses import LOSSES
from speechkd.models.projectors import PROJECTORS
from speechkd.recipe import Recipe, load_recipe, recipe_data
from speechkd.stages.inputs.corpora import open_corpora
from speechkd.stages.inputs.names import check_columns, check_names
from speechkd.teachers import TEACHERS
from tests.data.corpus import write_echo
from tests.data.raw import card_file, noise, shards_of, write

ROOT = Path(__file__).parents[2]
CSV: dict[str, Any] = {"kind": "csv", "file": "list.csv", "root": "wav", "key_field": "id", "split_field": "part"}
JOIN: dict[str, Any] = {"file": "ages.csv", "column": "who", "on": "speaker", "take": ["age"]}
TASK: dict[str, Any] = {"instruction": "Who?", "field": "gender", "kind": "choice", "choices": ["female", "male"]}
FOLDER: dict[str, Any] = {"kind": "folder", "root": "wav", "pattern": r"(?P<letter>[ab])\.wav"}
TARS: dict[str, Any] = {"kind": "webdataset", "tars": "s.tar"}
TALK: dict[str, Any] = {"kind": "messages", "file": "talk.jsonl", "root": "wav"}

CARDS: dict[str, tuple[dict[str, Any], str]] = {
    "cards.Card.fields": ({"fields": {"gendr": "sex"}}, "gender"),
    "cards.Card.drop": ({"drop": ["clint"]}, "client"),
    "cards.Card.values": ({"values": {"gender": {"femal": "F"}}}, "female"),
    "cards.Card.combine": ({"combine": {"who": ["gender", "langage"]}}, "language"),
    "cards.Card.source": ({"source": {**CSV, "kind": "csw"}}, "csv"),
    "cards.HoldOut.by": ({"hold_out": {"dev": {"share": 0.5, "by": "speeker"}}}, "speaker"),
    "cards.Task.field": ({"tasks": {"t": {**TASK, "field": "gendre"}}}, "gender"),
    "cards.Task.instruction_field": ({"tasks": {"t": {"instruction_field": "qestion", "field": "gender", "kind": "words"}}}, "question"),
    "cards.Task.when": ({"tasks": {"t": {**TASK, "when": {"language": "spansh"}}}}, "spanish"),
    "cards.Task.choices": ({"tasks": {"t": {**TASK, "choices": ["femal", "male"]}}}, "female"),
    "limits.AudioLimits.whole_only": ({"audio": {"over_long": "split", "whole_only": ["questionn"]}}, "question"),
    "joins.Join.file": ({"joins": [{**JOIN, "file": "age.csv"}]}, "ages.csv"),
    "joins.Join.column": ({"joins": [{**JOIN, "column": "whoo"}]}, "who"),
    "joins.Join.on": ({"joins": [{**JOIN, "on": "speeker", "required": False}]}, "speaker"),
    "joins.Join.take": ({"joins": [{**JOIN, "take": ["aeg"]}]}, "age"),
    "csv_table.CsvConfig.file": ({"source": {**CSV, "file": "lst.csv"}}, "list.csv"),
    "csv_table.TableFormat.numbers": ({"source": {**CSV, "numbers": ["strt"]}}, "start"),
    "rows.RowConfig.audio_field": ({"source": {**CSV, "audio_field": "adio"}}, "audio"),
    "rows.RowConfig.key_field": ({"source": {**CSV, "key_field": "idd"}}, "id"),
    "rows.RowConfig.split_field": ({"source": {**CSV, "split_field": "prt"}}, "part"),
    "rows.RowConfig.first_of": (
        {"source": {"kind": "jsonl", "file": "rows.jsonl", "root": "wav", "first_of": ["answers.txt"]}},
        "answers.text",
    ),
    "spans.SpanFields.start_field": ({"source": {**CSV, "start_field": "strt"}}, "start"),
    "spans.SpanFields.end_field": ({"source": {**CSV, "start_field": "start", "end_field": "edn"}}, "end"),
    "spans.SpanFields.duration_field": ({"source": {**CSV, "start_field": "start", "duration_field": "duratoin"}}, "duration"),
    "spans.SpanFields.channel_field": ({"source": {**CSV, "channel_field": "chanel", "first_channel": 0}}, "channel"),
    "paths.AudioPaths.root": ({"source": {**CSV, "root": "wva"}}, "wav"),
    "paths.AudioPaths.moved": ({"source": {**CSV, "file": "far.csv", "moved": {"/data/cals": ""}}}, "/data/calls"),
    "jsonl.JsonlConfig.file": ({"source": {"kind": "jsonl", "file": "row.jsonl", "root": "wav"}}, "rows.jsonl"),
    "folder.FolderConfig.key_field": ({"source": {**FOLDER, "key_field": "leter"}}, "letter"),
    "folder.FolderConfig.split_field": ({"source": {**FOLDER, "split_field": "leter"}}, "letter"),
    "folder.FolderConfig.metadata": ({"source": {**FOLDER, "metadata": "tabel.csv"}}, "wav/table.csv"),
    "folder.FolderConfig.suffixes": ({"source": {**FOLDER, "suffixes": ["wave", "flac"]}}, "wav"),
    "hf_disk.HfDiskConfig.path": ({"source": {"kind": "hf_disk", "path": "d.parqet"}}, "d.parquet"),
    "hf_disk.HfDiskConfig.columns": ({"source": {"kind": "hf_disk", "path": "d.parquet", "columns": ["gendr"]}}, "gender"),
    "kaldi.KaldiConfig.dir": ({"source": {"kind": "kaldi", "dir": "kald", "root": "wav"}}, "kaldi"),
    "lhotse_cuts.LhotseConfig.cuts": ({"source": {"kind": "lhotse", "cuts": "cut.jsonl", "root": "wav"}}, "cuts.jsonl"),
    "lhotse_shar.SharConfig.dir": ({"source": {"kind": "shar", "dir": "shr"}}, "shar"),
    "lhotse_shar.SharConfig.field": ({"source": {"kind": "shar", "dir": "shar", "field": "recoding"}}, "recording"),
    "messages.MessagesConfig.file": ({"source": {**TALK, "file": "tlk.jsonl"}}, "talk.jsonl"),
    "messages.MessagesConfig.key_field": ({"source": {**TALK, "key_field": "idd"}}, "id"),
    "messages.MessagesConfig.tag": ({"source": {**TALK, "tag": "<aduio>"}}, "<audio>"),
    "nemo.NemoConfig.manifest": ({"source": {"kind": "nemo", "manifest": "nmeo.json", "root": "wav"}}, "nemo.json"),
    "nemo.NemoConfig.key_field": ({"source": {"kind": "nemo", "manifest": "nemo.json", "root": "wav", "key_field": "idd"}}, "id"),
    "nemo.NemoConfig.tars": ({"source": {"kind": "nemo", "manifest": "nemo.json", "tars": "st.tar"}}, "s.tar"),
    "tts.TtsConfig.text_field": (
        {"source": {"kind": "tts", "rows": CSV, "text_field": "questoin", "voice": {"engine": "espeak", "voices": ["en"]}}},
        "question",
    ),
    "tts.EspeakVoice.voices": (
        {"source": {"kind": "tts", "rows": CSV, "text_field": "question", "voice": {"engine": "espeak", "voices": ["en-uss"]}}},
        "en-us",
    ),
    "webdataset.WebdatasetConfig.tars": ({"source": {**TARS, "tars": "st.tar"}}, "s.tar"),
    "webdataset.WebdatasetConfig.audio": ({"source": {**TARS, "audio": ["wave"]}}, "wav"),
    "webdataset.WebdatasetConfig.json_suffix": ({"source": {**TARS, "json_suffix": "jsn"}}, "json"),
    "webdataset.WebdatasetConfig.text": ({"source": {**TARS, "text": {"text": "words"}}}, "txt"),
}
"""Key -> what is misspelt in it, and the name that is meant"""

FILES = {
    "joins.Join.file", "csv_table.CsvConfig.file", "paths.AudioPaths.root", "jsonl.JsonlConfig.file", "folder.FolderConfig.metadata",
    "hf_disk.HfDiskConfig.path", "kaldi.KaldiConfig.dir", "lhotse_cuts.LhotseConfig.cuts", "lhotse_shar.SharConfig.dir",
    "messages.MessagesConfig.file", "nemo.NemoConfig.manifest", "nemo.NemoConfig.tars", "webdataset.WebdatasetConfig.tars",
}  # fmt: skip
"""Files of the data: `check` and `shard` both refuse a misspelt one"""

SPANS = "prompt.span={reads: text, field: langage}"
READER = "live.reader={kind: self, reads: {form: json, fields: [langage]}}"
DIVERGE = "losses={divergence: {teacher: reader}}"
BANK = "student.projector={kind: query_bank, queries: 4, layers: 1, heads: 2, languages: [english, spansh]}"
JUDGE = "{backend: openai_http, url: 'http://x/v1', model: m, max_new_tokens: 9, fields: [gender]}"
RECIPES: dict[str, tuple[list[str], str]] = {
    "recipe.CorpusConfig.train_split": (["data.corpora.0.train_split=trian"], "train"),
    "recipe.CorpusConfig.weights": (["data.corpora.0.weights={kdd: 1}"], "kd"),
    "recipe.Recipe.deepspeed": (["deepspeed=ds_configs/zero33.json"], "ds_configs/zero3.json"),
    "recipe.Recipe.objective": (["objectives={all: [response_ce]}", "objective=al"], "all"),
    "recipe.Recipe.objectives": (["objectives={all: [response_cee]}"], "response_ce"),
    "recipe.Recipe.losses": (["losses={response_cee: {}}"], "response_ce"),
    "base.LossConfig.kind": (["losses={ce: {kind: response_cee}}"], "response_ce"),
    "base.LossConfig.streams": (["losses={response_ce: {streams: [kdd]}}"], "kd"),
    "base.TeacherLossConfig.teacher": (["live.reader={kind: self}", "losses={divergence: {teacher: raeder}}"], "reader"),
    "contrastive.Config.negative": (
        ["live.reader={kind: self}", "losses={contrastive: {teacher: reader, negative: readr}}"],
        "reader",
    ),
    "base.TeacherConfig.backend": (["teachers.ift.backend=lable"], "label"),
    "base.TeacherConfig.tasks": (["teachers.kd.tasks=[gendr]"], "gender"),
    "hf_local.ReaderConfig.fields": (["teachers.kd.fields=[gender, langage]"], "language"),
    "openai_http.OpenAIHttpConfig.fields": (
        ["teachers.kd={backend: openai_http, url: 'http://x/v1', model: m, fields: [langage], max_new_tokens: 9}"],
        "language",
    ),
    "config.TrainConfig.regime": (["train.regime=kdd"], "kd"),
    "config.Phase.mix": (["train.regimes={kd: [{name: a, steps: 1, mix: {kd: 1}}], later: [{name: b, steps: 1, mix: {itf: 1}}]}"], "ift"),
    "projectors.ProjectorConfig.kind": (["student.projector={kind: qfromer}"], "qformer"),
    "query_bank.QueryBankConfig.languages": ([BANK], "spanish"),
    "questions.EvaluationConfig.splits": (["evaluation.splits={student: tset}"], "test"),
    "questions.EvaluationConfig.tasks": (["evaluation.tasks=[gendr]"], "gender"),
    "questions.EvaluationConfig.slices": (["evaluation.slices=[gendr]"], "gender"),
    "questions.JudgeConfig.tasks": (
        [f"evaluation.judge={{teacher: {JUDGE}, tasks: [gendr]}}"],
        "gender",
    ),
    "averages.AverageConfig.categories": (["evaluation.average={rule: audiobench, categories: {GR: [gendr]}}"], "gender"),
    "config.HeldOutConfig.split": (["train.held_out={split: tset}"], "test"),
    "prompts.PromptConfig.template": (["prompt.template=shards/prompts/meta_promt.j2"], "shards/prompts/meta_prompt.j2"),
    "prompts.PromptConfig.pool": (["prompt.pool=shards/prompts/instruction.txt"], "shards/prompts/instructions.txt"),
    "prompts.PromptConfig.transcript": (["prompt.transcript=questoin", "losses={input_alignment: {}}"], "question"),
    "prompts.SpanConfig.field": ([SPANS], "language"),
    "prompts.ChannelConfig.field": (["prompt.channels={field: questin}"], "question"),
    "prompts.ChannelConfig.label": (["prompt.channels={field: question, label: gendr}"], "gender"),
    "prompt.Reading.fields": (
        ["prompt.text={form: json, fields: [langage]}", "train.regimes={kd: [{name: a, steps: 1, mix: {kd/text: 1}}]}"],
        "language",
    ),
    "live_config.LiveReading.fields": ([READER, DIVERGE], "language"),
    "gates.AsrGate.hypothesis": (["gates.asr={hypothesis: questin, reference: question}"], "question"),
    "gates.AsrGate.reference": (["gates.asr={hypothesis: question, reference: questin}"], "question"),
    "gates.GateConfig.languages": (["gates.languages=[eng]"], "en"),
}
COLUMNS: dict[str, list[str]] = {
    "base.ScoringConfig.responses": ["teachers.kd.responses=ecko", "teachers.kd.signals={topk: {k: 4}}"],
    "prompts.SpanConfig.column": ["prompt.span={reads: column, column: ecko}"],
    "live_config.LiveReading.column": ["live.reader={kind: self, reads: {form: column, column: ecko}}", DIVERGE],
}
"""Checked before training, when every column is there"""

OTHERS = {
    "new names and free text": """
        cards.Card.name cards.Card.version cards.Card.licence cards.Card.homepage cards.Card.description cards.Card.constants
        cards.Card.hold_out cards.Card.tasks cards.Task.instruction limits.AudioLimits.duration_field csv_table.TableFormat.columns
        rows.RowConfig.split folder.FolderConfig.split kaldi.KaldiConfig.split lhotse_cuts.LhotseConfig.split lhotse_shar.SharConfig.split
        messages.MessagesConfig.split nemo.NemoConfig.split webdataset.WebdatasetConfig.split tts.TtsConfig.voice_field
        espeak.EspeakConfig.languages espeak.EspeakConfig.rates espeak.EspeakConfig.splits espeak.EspeakConfig.style
        espeak.LanguageConfig.digits espeak.LanguageConfig.phrases espeak_voices.VoiceRule.salt config.Phase.name recipe.Recipe.name
        recipe.Recipe.paper recipe.Recipe.description recipe.Recipe.runs recipe.DataConfig.root prompts.PromptConfig.instructions
        recipe.Recipe.live recipe.Recipe.teachers config.TrainConfig.regimes tracking.TrackingConfig.experiment""",
    "forms of text: what does not fit is refused by the line that does not": """
        csv_table.TableFormat.delimiter csv_table.TableFormat.comment csv_table.TableFormat.pattern paths.TextFiles.encoding
        folder.FolderConfig.pattern""",
    "a block of another source, which is swept itself": "tts.TtsConfig.rows",
    "an earlier version, named when its shards are looked for": "cards.Card.grows",
    "models, files, servers and programs, tried before they are used": """
        recipe.CorpusConfig.card config.TrainConfig.copy_to cross_decoder.DecoderConfig.init_from linear.LinearConfig.init_from
        student_config.StudentConfig.encoder student_config.StudentConfig.llm student_config.StudentConfig.init_from
        student_config.StudentConfig.config_root hf_local.LoadedConfig.device_map hf_local.LocalConfig.model live_config.SpeechConfig.model
        live_config.TextLlmConfig.model lora.LoraConfig.targets openai_http.OpenAIHttpConfig.extra openai_http.OpenAIHttpConfig.key_env
        openai_http.OpenAIHttpConfig.model openai_http.OpenAIHttpConfig.revision openai_http.OpenAIHttpConfig.url
        speech_server.ServerVoice.key_variable speech_server.ServerVoice.model speech_server.ServerVoice.url
        speech_server.ServerVoice.voices tts.CommandVoice.argv tts.CommandVoice.voices tracking.TrackingConfig.prometheus_dir
        tracking.TrackingConfig.uri parsers.ParsersConfig.voicebench parsers.ParsersConfig.whisper_spelling
        base.KernelConfig.impl espeak.LanguageConfig.voice""",
}
"""Why a key names nothing in the data -> keys"""


def models_in(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    elif get_origin(kind) is not Literal:
        for part in get_args(kind):
            yield from models_in(part)


def holds_text(kind: Any) -> bool:
    return kind is str or (get_origin(kind) is not Literal and any(map(holds_text, get_args(kind))))


def swept(model: type[BaseModel], done: dict[type[BaseModel], set[str]]) -> None:
    """Add the keys of `model` that hold text, and those of the blocks in it; a key is named by the class that declares it."""
    if model in done:
        return
    done[model] = set()
    for name, field in model.model_fields.items():
        owner = next(base for base in reversed(model.__mro__) if name in base.__dict__.get("__annotations__", {}))
        if holds_text(field.annotation):
            done[model].add(f"{owner.__module__.rpartition('.')[2]}.{owner.__qualname__}.{name}")
        for block in models_in(field.annotation):
            swept(block, done)


def test_every_key_that_holds_text_is_listed_here() -> None:
    done: dict[type[BaseModel], set[str]] = {}
    tables: list[Any] = [SOURCES, TEACHERS, LOSSES, PROJECTORS]
    for model in (Card, Recipe, *(table.get(name).Config for table in tables for name in table)):
        swept(model, done)
    found = set().union(*done.values())
    plain = {key for keys in OTHERS.values() for key in keys.split()}
    refer = {*CARDS, *RECIPES, *COLUMNS}
    assert not plain & refer and sorted(found - plain - refer) == [] == sorted((plain | refer) - found)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips in every layout."""
    import tarfile

    folder = tmp_path_factory.mktemp("corpus")
    for seed, name in enumerate("ab"):
        write(folder / f"wav/{name}.wav", noise(seed, 0.5, channels=2))
    head = "id,audio,gender,language,speaker,part,start,end,duration,channel,client,question"
    rows = ["a,a.wav,female,english,s1,train,0,0.2,0.2,0,x8,who is it", "b,b.wav,male,spanish,s2,test,0.1,0.3,0.2,1,x9,who"]
    files = {
        "list.csv": "\n".join([head, *rows, ""]),
        "far.csv": "\n".join(
            [head, *(row.replace(",a.wav", ",/data/calls/a.wav").replace(",b.wav", ",/data/calls/b.wav") for row in rows), ""]
        ),
        "ages.csv": "who,age\ns1,20\ns2,30\n",
        "rows.jsonl": '{"audio": "a.wav", "answers": {"text": ["x"]}}\n',
        "talk.jsonl": '{"id": "1", "messages": [{"role": "user", "content": "<audio>Who?"}], "audios": ["a.wav"]}\n',
        "nemo.json": '{"audio_filepath": "a.wav", "id": "1"}\n',
        "cuts.jsonl": "{}\n",
        "wav/table.csv": "file_name\na.wav\n",
        "kaldi/wav.scp": "a a.wav\n",
        "shar/cuts.000000.jsonl": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "shar/recording.000000.tar").touch()
    with tarfile.open(folder / "s.tar", "w") as tar:
        for name in ("a.wav", "a.json", "a.txt"):
            tar.add(folder / ("wav/a.wav" if name == "a.wav" else "nemo.json"), name)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"audio": [{"path": "a.wav", "bytes": b""}], "gender": ["x"]}), folder / "d.parquet")
    return folder


def refused(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that ends with 2."""
    monkeypatch.setattr(sys, "argv", ["speechkd", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2, said
    assert said.err.count("\n") == 1, said
    return said.err


@pytest.mark.parametrize("key", CARDS)
def test_a_name_that_the_corpus_lacks_is_refused(
    key: str, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, meant = CARDS[key]
    card = card_file(corpus, **{"source": CSV, **changes})
    for words in (["check", str(card)], ["shard", str(card), "--out", str(corpus / "out")])[: 1 + (key in FILES)]:
        line = refused(words, monkeypatch, capsys)
        assert f"did you mean `{meant}`" in line.replace(f"{corpus}/", ""), line


@pytest.fixture(scope="module")
def sharded(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as shards, and a column."""
    folder = tmp_path_factory.mktemp("sharded")
    for name in ("wav", "list.csv"):
        (shutil.copytree if name == "wav" else shutil.copy)(corpus / name, folder / name)
    shards = shards_of(folder, CSV, tasks={"gender": TASK})
    write_echo(shards)
    (folder / "data/raw").mkdir(parents=True)
    shutil.move(folder / "out/v1", folder / "data/raw/v1")
    return folder


BASE = [
    "teachers.kd.fields=[gender, language]", "data.corpora.0.train_split=train", "evaluation.splits={student: test}",
    "evaluation.tasks=[gender]", "train.regime=kd", "prompt.transcript=question",
]  # fmt: skip


def recipe_file(folder: Path, sets: list[str]) -> Path:
    data = recipe_data(ROOT / "pipelines/meta_prompt_kd.yaml", [f"data.root={folder / 'data'}", "data.corpora=[{card: x}]", *BASE])
    data["data"]["corpora"][0]["card"] = str(folder / "card.yaml")
    (folder / "recipe.yaml").write_text(dump_yaml(apply_sets(data, sets)))
    return folder / "recipe.yaml"


@pytest.mark.parametrize("key", RECIPES)
def test_a_name_of_a_recipe_that_the_data_lacks_is_refused(
    key: str, sharded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets, meant = RECIPES[key]
    monkeypatch.chdir(ROOT)
    line = refused(["check", str(recipe_file(sharded, sets))], monkeypatch, capsys)
    assert f"did you mean `{meant}`" in line, line


@pytest.mark.parametrize("words", [[], ["--regrade"], ["--whole"]], ids=lambda words: " ".join(words) or "plain")
@pytest.mark.parametrize("key", [key for key in RECIPES if key.startswith(("questions.", "averages."))])
def test_eval_refuses_a_name_that_the_data_lacks_before_it_looks_for_a_student(
    key: str, words: list[str], sharded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets, meant = RECIPES[key]
    monkeypatch.chdir(ROOT)
    line = refused(["eval", str(recipe_file(sharded, sets)), *words], monkeypatch, capsys)
    assert f"did you mean `{meant}`" in line, line


def test_a_recipe_whose_names_are_all_there_is_good(sharded: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["speechkd", "check", str(recipe_file(sharded, []))])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None) and "recipe ok" in capsys.readouterr().out


@pytest.mark.parametrize("key", COLUMNS)
def test_a_column_that_a_corpus_lacks_is_refused_before_training(key: str, sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(recipe_file(sharded, COLUMNS[key]))
    with pytest.raises(InputError, match="unknown column `ecko`; allowed: echo; did you mean `echo`"):
        check_columns(recipe, open_corpora(recipe.data))


def test_only_roles_that_are_taught_are_looked_at(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(recipe_file(sharded, ["teachers.kd.fields=[langage]", "train.regime=ift"]))
    corpora = open_corpora(recipe.data)
    check_names(recipe, corpora)
    with pytest.raises(InputError, match="unknown field `langage`; allowed: .*did you mean `language`.*teachers.kd.fields"):
        check_names(recipe, corpora, ["kd"])


def test_a_value_that_is_only_absent_is_allowed(corpus: Path) -> None:
    """A part of a corpus may lack a class; what is refused is a class that nothing has beside one very like it that is not named."""
    tasks = {"t": {**TASK, "choices": ["female", "male", "other"], "when": {"language": "english"}}}
    card = load_card(card_file(corpus, CSV, tasks=tasks, values={"gender": {"diverse": "other"}, "start": {"0.15": 1}}))
    assert len(list_items(card, open_source(card, corpus), corpus)) == 2
