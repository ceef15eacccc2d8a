"""Small forms of what the papers' recipes name: models of the same families with random weights, raw corpora as cards describe them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import soundfile
import torch
import yaml

from speechkd.models.prompt import Prompt
from tests.data.raw import noise, write
from tests.e2e.conftest import ROOT
from tests.models.test_speech_llm import omni_thinker, published_names
from tests.teachers.speech_models import LLM, SECONDS, write_speech_llm

FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64, "final_logit_softcapping": 30.0},
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
}
CV = ["client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes", "age", "gender", "accents", "variant"]
CV += ["locale", "segment"]


def write_llm(folder: Path, kind: str, layers: int = 2, padding: int = 0, width: int = 24) -> Path:
    """A causal LM of a family, with the stand-in's tokenizer and `padding` rows behind its vocabulary."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(LLM)
    sizes = {"hidden_size": width, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings = {"vocab_size": len(tokenizer) + padding, "initializer_range": 0.2, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **settings, **FAMILIES[kind])).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_brief(folder: Path) -> Path:
    """A Llama that answers every prompt with `one` and ends its turn: a teacher whose answers are whole, whatever it is asked."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(write_llm(folder, "llama"))
    prompt = Prompt("{{ question }}{{ audio }}", AutoTokenizer.from_pretrained(folder))
    asked, (word, end) = prompt.teacher("one", "")[-1], prompt.answer("one")
    with torch.no_grad():
        for layer in model.model.layers:  # nothing is added to a token's own embedding: the next token follows from the last one alone
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embed_VD, head_VD = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        head_VD.zero_()
        head_VD[word], head_VD[end] = embed_VD[asked], embed_VD[word]
    model.save_pretrained(folder)
    return folder


def write_omni(folder: Path, layers: int, padding: int) -> Path:
    """A Qwen2.5-Omni as it is published: thinker, talker, tokenizer, features; clips of up to 30 s."""
    from transformers import AutoTokenizer, WhisperFeatureExtractor

    tokenizer = AutoTokenizer.from_pretrained(LLM)
    torch.manual_seed(2)
    omni_thinker(len(tokenizer) + padding, layers).save_pretrained(folder)
    published_names(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=8).save_pretrained(folder)
    return folder


def write_whisper(folder: Path, queries: int) -> Path:
    """A whole Whisper, whose decoder has as many positions as a projector wants queries; clips of up to 3 s."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    config = WhisperConfig(num_mel_bins=80, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=20, vocab_size=60)
    config.max_source_positions, config.max_target_positions, config.pad_token_id = 150, queries, 0
    config.decoder_layers, config.decoder_attention_heads, config.decoder_ffn_dim = 2, 2, 20
    torch.manual_seed(3)
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, chunk_length=3).save_pretrained(folder)
    return folder


def write_models(folder: Path) -> Path:
    """All of them; depths are half of the papers' where a layer map counts them."""
    from transformers import WhisperFeatureExtractor

    write_llm(folder / "gemma2", "gemma2")
    write_llm(folder / "llama", "llama")
    write_brief(folder / "brief")
    write_llm(folder / "qwen2", "qwen2", padding=3)
    write_llm(folder / "qwen3", "qwen3", layers=18, width=32)
    write_omni(folder / "omni", layers=14, padding=7)
    write_speech_llm(folder / "qwen2_audio")
    WhisperFeatureExtractor(feature_size=8, chunk_length=SECONDS).save_pretrained(folder / "qwen2_audio")  # where the hub's has them
    write_whisper(folder / "whisper", queries=256)
    return folder


def over(folder: Path, card: str, **changes: Any) -> Path:
    """A shipped card with a few keys of its own: a small corpus needs larger shares to have anything in every split."""
    path = folder / f"{card}.yaml"
    path.write_text(yaml.safe_dump({"extends": str(ROOT / f"shards/cards/{card}.yaml"), **changes}), encoding="utf-8")
    return path


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def librispeech(raw: Path) -> None:
    root, speakers = raw / "librispeech/LibriSpeech", []
    for reader, part in enumerate(("train-clean-100", "train-clean-360", "train-other-500", "test-clean", "test-other"), 10):
        speakers.append(f"{reader}   | {'MF'[reader % 2]} | {part} | 8.0 | A reader")
        names = [f"{reader}-7-{number:04d}" for number in range(4)]
        for number, name in enumerate(names):
            write(root / f"{part}/{reader}/7/{name}.flac", noise(reader * 10 + number, 0.5))
        words = ("zero one", "two three four", "five six", "seven eight nine")
        _text(root / f"{part}/{reader}/7/{reader}-7.trans.txt", "".join(f"{n} {w.upper()}\n" for n, w in zip(names, words, strict=True)))
    _text(root / "SPEAKERS.TXT", "\n".join([";ID|SEX|SUBSET|MINUTES|NAME", *speakers]) + "\n")


def ravdess(raw: Path) -> None:
    for actor in range(1, 25):
        for number, emotion in enumerate((1 + actor % 8, 1 + (actor + 3) % 8)):
            write(
                raw / f"ravdess/Actor_{actor:02d}/03-01-{emotion:02d}-01-0{number + 1}-01-{actor:02d}.wav", noise(actor * 10 + number, 0.4)
            )


def cota(raw: Path, count: int = 24) -> None:
    rows = [
        {"audio": f"{n}.wav", "question": f"How many voices, {n}?", "answer": f"<PLANNING> listen </PLANNING> {n % 3}"}
        for n in range(count)
    ]
    for number in range(count):
        write(raw / f"cota/audio/{number}.wav", noise(number, 0.4))
    _text(raw / "cota/cota.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def open_orca(raw: Path, count: int = 16) -> None:
    from datasets import Dataset

    (raw / "open_orca").mkdir(parents=True)
    for file, start in (("1M-GPT4-Augmented", 0), ("3_5M-GPT3_5-Augmented", 100)):
        asked = range(start, start + count)
        rows = {
            "id": [f"flan.{n}" for n in asked],
            "system_prompt": ["You are helpful."] * count,
            "question": [f"What is {n} and one?" for n in asked],
            "response": [f"It is {n + 1}." for n in asked],
        }
        Dataset.from_dict(rows).to_parquet(raw / f"open_orca/{file}.parquet")


def six_languages(raw: Path) -> None:
    """Common Voice in four languages, viVoice, YODAS2."""
    from datasets import Audio, Dataset

    for seed, language in enumerate(("en", "zh-CN", "es", "de")):
        clips = raw / f"common_voice/{language}/clips"
        clips.mkdir(parents=True)
        for split in ("train", "dev", "test"):
            names = [f"common_voice_{language}_{split}{number}.mp3" for number in range(3)]
            for number, name in enumerate(names):
                soundfile.write(clips / name, noise(seed * 10 + number, 0.5), 16_000, format="MP3")
            lines = [["c", name, "s", f"one two {split}", "", "2", "0", "", "male_masculine", "", "", language, ""] for name in names]
            _text(raw / f"common_voice/{language}/{split}.tsv", "".join("\t".join(line) + "\n" for line in [CV, *lines]))
    clip = {"bytes": write(raw / "x.wav", noise(77, 0.5)).read_bytes(), "path": None}
    rows = Dataset.from_dict({"channel": ["@a"] * 3, "text": ["xin chào", "một hai", "ba"], "audio": [clip] * 3})
    (raw / "vivoice/data").mkdir(parents=True)
    rows.cast_column("audio", Audio(decode=False)).to_parquet(raw / "vivoice/data/train-00000-of-00001.parquet")
    write(raw / "yodas2/id000/wav/video.wav", noise(78, 3.0))
    spoken = [{"audio_filepath": "video.wav", "offset": 0.6 * n, "duration": 0.5, "text": f"satu dua {n}"} for n in range(4)]
    _text(raw / "yodas2/id000/manifest.jsonl", "".join(json.dumps(row) + "\n" for row in spoken))
