"""The cards that ship, each tried on a corpus of a few clips laid out as its first lines say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speechkd.data.cards import list_items, load_card, open_source
from speechkd.data.sources.base import Item, MissingData
from speechkd.stages.check import check
from tests.data.raw import noise, write

ROOT = Path(__file__).parents[2]
CARDS = sorted((ROOT / "shards/cards").glob("*.yaml"))

TREES: dict[str, dict[str, str]] = {
    "aishell": {
        "aishell/data_aishell/wav/train/S0002/BAC009S0002W0122.wav": "",
        "aishell/data_aishell/wav/test/S0764/BAC009S0764W0121.wav": "",
        "aishell/data_aishell/transcript/aishell_transcript_v0.8.txt": "BAC009S0002W0122 而 对 楼市\n",
        "aishell/resource_aishell/speaker.info": "0002 F\n0764 F\n",
    },
    "audiocaps": {
        "audiocaps/audio/vfY_TJq7n_U_130.wav": "",
        "audiocaps/train.csv": 'audiocap_id,youtube_id,start_time,caption\n58146,vfY_TJq7n_U,130,"Rustling, then talking"\n',
        **{f"audiocaps/{split}.csv": "audiocap_id,youtube_id,start_time,caption\n" for split in ("val", "test")},
    },
    "clotho_aqa": {
        "clotho_aqa/audio_files/Rain.wav": "",
        "clotho_aqa/clotho_aqa_train.csv": "file_name,QuestionText,answer,confidence\nRain.wav,Is it raining?,yes,yes\n",
        **{f"clotho_aqa/clotho_aqa_{split}.csv": "file_name,QuestionText,answer,confidence\n" for split in ("val", "test")},
    },
    "common_voice_de": {
        "common_voice/de/clips/common_voice_de_1.wav": "",
        **{
            f"common_voice/de/{split}.tsv": "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\t"
            f'accents\tvariant\tlocale\tsegment\nabc\tcommon_voice_de_{i}.mp3\t9f\tEr sagte: "Ja\t\t'
            "2\t0\ttwenties\tfemale_feminine\tDeutschland\t\tde\t\n"
            for i, split in enumerate(("train", "dev", "test"))
        },
    },
    "iemocap": {
        "iemocap/Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav": "",
        "iemocap/Session5/sentences/wav/Ses05M_script03_2/Ses05M_script03_2_M041.wav": "",
        "iemocap/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt": "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]\nC-E2:\tNeutral;\t()\n",
        "iemocap/Session5/dialog/EmoEvaluation/Ses05M_script03_2.txt": "[1.0 - 2.0]\tSes05M_script03_2_M041\tang\t[1.5, 4.0, 4.5]\n",
        "iemocap/Session1/dialog/transcriptions/Ses01F_impro01.txt": "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\n",
    },
    "librispeech": {
        "librispeech/LibriSpeech/train-clean-100/60/121082/60-121082-0000.wav": "",
        "librispeech/LibriSpeech/dev-other/116/288045/116-288045-0000.wav": "",
        "librispeech/LibriSpeech/train-clean-100/60/121082/60-121082.trans.txt": "60-121082-0000 CHAPTER ONE\n",
        "librispeech/LibriSpeech/dev-other/116/288045/116-288045.trans.txt": "116-288045-0000 AS I APPROACHED\n",
        "librispeech/LibriSpeech/SPEAKERS.TXT": ";ID  |SEX| SUBSET\n"
        '60   | M | train-clean-100    | 20.18 | | CBW | Simon\n116  | M | dev-other | 8.0 | F "x\n',
    },
    "magicdata": {
        "magicdata/train/5_541/5_541_20170607142131.wav": "",
        "magicdata/dev/5_541/5_541_2.wav": "",
        "magicdata/test/5_541/5_541_3.wav": "",
        **{
            f"magicdata/{split}/TRANS.txt": f"UtteranceID\tSpeakerID\tTranscription\n5_541_{i}.wav\t5_541\t爱护我\n"
            for split, i in (("train", "20170607142131"), ("dev", "2"), ("test", "3"))
        },
        "magicdata/SPKINFO.txt": "SPKID\tAge\tGender\tDialect\n5_541\t33\tfemale\tguang dong\n",
    },
    "meld": {
        "meld/wav/train/dia0_utt0.wav": "",
        **{
            f"meld/{split}_sent_emo.csv": "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,"
            "StartTime,EndTime\n"
            '1,"Oh, so",Chandler,neutral,neutral,0,0,8,21,"00:16:16,059","00:16:21,731"\n'
            for split in ("train", "dev", "test")
        },
    },
    "ravdess": {"ravdess/Actor_12/03-01-06-01-02-01-12.wav": "", "ravdess/Actor_01/03-01-03-02-01-01-01.wav": ""},
    "savee": {"savee/AudioData/DC/sa01.wav": "", "savee/AudioData/KL/a15.wav": "", "savee/AudioData/Info.txt": "x"},
    "spoken_squad": {
        "spoken_squad/audio/train/0_0.wav": "",
        "spoken_squad/train.jsonl": json.dumps({"id": "5a", "audio": "train/0_0.wav", "context": "c", "question": "q", "answer": "a"}),
        "spoken_squad/test.jsonl": "",
    },
    "voxceleb1": {
        "voxceleb1/dev/wav/id10001/1zcIwhmdeo4/00001.wav": "",
        "voxceleb1/test/wav/id10270/5r0dWxy17C8/00001.wav": "",
        "voxceleb1/vox1_meta.csv": "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
        "id10001\tA\tm\tIreland\tdev\nid10270\tE\tf\tUK\ttest\n",
    },
    "wavcaps": {
        "wavcaps/audio/bbc/NHU.wav": "",
        "wavcaps/bbc.jsonl": json.dumps(
            {"id": "NHU", "caption": "A dog", "duration": 3.0, "href": "x", "description": "d", "download_link": "x", "audio": "x"}
        ),
        "wavcaps/freesound.jsonl": json.dumps({"id": "7", "caption": "A car", "file_name": "7.wav", "author": "x", "href": "x"}),
        "wavcaps/soundbible.jsonl": json.dumps({"id": "8", "caption": "A bell", "title": "x", "author": "x"}),
        "wavcaps/audioset.jsonl": "",
    },
    "yodas2": {
        "yodas2/id000/wav/1JpiRT.wav": "",
        "yodas2/id000/manifest.jsonl": json.dumps({"audio_filepath": "1JpiRT.wav", "offset": 0.1, "duration": 0.2, "text": "ya"}),
    },
}
SAYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "aishell": (
        "BAC009S0002W0122",
        "train",
        {"transcript": "而 对 楼市", "gender": "female", "speaker": "S0002", "nationality": "chinese"},
    ),
    "audiocaps": ("train-58146", "train", {"caption": "Rustling, then talking", "source": "youtube"}),
    "clotho_aqa": ("train-000000001", "train", {"question": "Is it raining?", "answer": "yes", "confidence": "yes"}),
    "common_voice_de": (
        "common_voice_de_1",
        "dev",
        {"transcript": 'Er sagte: "Ja', "language": "german", "gender": "female", "up_votes": 2, "down_votes": 0, "accent": "Deutschland"},
    ),
    "iemocap": (
        "Ses01F_impro01_F000",
        "Session1",
        {"emotion": "neutral", "valence": 2.5, "start_time": 6.2901, "gender": "female", "transcript": "Excuse me.", "speaker": "Ses01"},
    ),
    "librispeech": (
        "60-121082-0000",
        "train-clean-100",
        {"transcript": "CHAPTER ONE", "gender": "male", "noise": "clean", "speaker": "60"},
    ),
    "magicdata": ("5_541_2", "dev", {"transcript": "爱护我", "gender": "female", "age": "33", "accent": "guang dong"}),
    "meld": ("train-dia0-utt0", "train", {"transcript": "Oh, so", "speaker": "Chandler", "emotion": "neutral", "sentiment": "neutral"}),
    "ravdess": (
        "Actor_12_03-01-06-01-02-01-12",
        "train",
        {"emotion": "fearful", "intensity": "normal", "gender": "female", "speaker": "12", "transcript": "Dogs are sitting by the door"},
    ),
    "savee": ("DC_sa01", "DC", {"emotion": "sad", "speaker": "DC", "gender": "male"}),
    "spoken_squad": ("5a", "train", {"transcript": "c", "question": "q", "answer": "a"}),
    "voxceleb1": ("dev_wav_id10001_1zcIwhmdeo4_00001", "dev", {"gender": "male", "nationality": "Ireland", "speaker": "id10001"}),
    "wavcaps": ("bbc-NHU", "bbc", {"caption": "A dog"}),
    "yodas2": ("1JpiRT", "train", {"transcript": "ya", "language": "indonesian"}),
}
NOT_KEPT = {"client_id", "sentence_id", "locale", "href", "number", "file", "Season", "Utterance_ID", "audiocap_id"}


def items_of(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> list[Item]:
    monkeypatch.setenv("SPEECHKD_DATA", str(root))
    path = ROOT / f"shards/cards/{name}.yaml"
    card = load_card(path)
    return list_items(card, open_source(card, path.parent), path.parent)


@pytest.mark.parametrize("name", TREES)
def test_a_card_reads_the_layout_that_it_describes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file, text in TREES[name].items():
        if file.endswith(".wav"):
            suffix = ".flac" if name in ("librispeech", "wavcaps") else ".wav"
            write((tmp_path / file).with_suffix(suffix), noise(len(file), 0.5))
        else:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(text, encoding="utf-8")
    items = {item.key: item for item in items_of(name, tmp_path, monkeypatch)}
    key, split, says = SAYS[name]
    assert items[key].split == split and says.items() <= items[key].metadata.items(), items[key]
    assert not NOT_KEPT & {field for item in items.values() for field in item.metadata}


def test_questions_of_mlqa_are_spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    rows = {
        "context": ["Rome is old."],
        "question": ["How old is Rome?"],
        "answers": [{"answer_start": [8], "text": ["old"]}],
        "id": ["a1"],
    }
    for split in ("validation", "test"):
        (tmp_path / f"mlqa/mlqa.en.en/{split}").mkdir(parents=True)
        Dataset.from_dict({**rows, "id": [split]}).to_parquet(tmp_path / f"mlqa/mlqa.en.en/{split}/0000.parquet")
    items = items_of("mlqa", tmp_path, monkeypatch)
    assert [(item.key, item.split, item.payload["text"]) for item in items] == [(s, s, "How old is Rome?") for s in ("test", "validation")]
    assert items[0].metadata["answer"] == "old" and items[0].metadata["context"] == "Rome is old." and items[0].metadata["voice"]


def test_spoken_documents_of_slue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Audio, Dataset

    audio = {"bytes": write(tmp_path / "x.wav", noise(1, 0.3)).read_bytes(), "path": None}
    spans = {"answer": ["Rome", "rome"], "start_second": [1.0, 2.0], "end_second": [1.5, 2.5]}
    rows = {
        "raw_question_text": ["Where?"],
        "raw_document_text": ["In Rome."],
        "answer_spans": [spans],
        "document_audio": [audio],
        "question_audio": [audio],
    }
    dataset = Dataset.from_dict(rows)
    for column in ("document_audio", "question_audio"):
        dataset = dataset.cast_column(column, Audio(decode=False))
    (tmp_path / "slue/sqa5").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        dataset.to_parquet(tmp_path / f"slue/sqa5/{split}-00000-of-00001.parquet")
    items = items_of("slue_sqa5", tmp_path, monkeypatch)
    assert items[0].metadata == {"question": "Where?", "transcript": "In Rome.", "answer": "Rome", "language": "english", "n_speakers": 1}


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_card_is_good_without_its_data(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    card = load_card(path)
    if card.source["kind"] == "espeak":
        return
    monkeypatch.setenv("SPEECHKD_DATA", str(tmp_path))
    assert check(path) == 0
    assert capsys.readouterr().out.startswith(f"card ok: {card.name}/{card.version}, source {card.source['kind']}, tasks ")
    with pytest.raises(MissingData, match=f"no (file|folder|file like) `{tmp_path}/.*SPEECHKD_DATA") as caught:
        open_source(card, path.parent)
    assert "\n" not in str(caught.value)
    assert f"`{path.name}`" in (ROOT / "shards/README.md").read_text(encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=../card.schema.json\n"), "editors find the keys by it"


def test_every_task_asks_for_what_its_card_gives() -> None:
    """Fields of tasks are names that the card maps, keeps constant or lists among its values, or the source's own."""
    standard = {"caption", "answer", "question", "context", "transcript", "emotion", "language", "gender", "rate"}
    for path in CARDS:
        card = load_card(path)
        known = standard | set(card.fields.values()) | set(card.constants) | set(card.values) | set(card.combine)
        for task in card.tasks.values():
            assert task.field in known and (task.instruction_field or "question") in known, path
