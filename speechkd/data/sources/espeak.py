"""Synthetic speech with exact metadata, from the espeak-ng library in the Python package `espeakng_loader`.

Text, voice and speed are drawn from the card; this module contains nothing language-specific. Gender comes from espeak's voice files. Every
draw is a pure function of (seed, split, number), so items are listed without synthesis.

The library keeps state between utterances (a second reading in one process differs), so samples are reproducible per shard: one `read` of
the same items in the same order in a fresh process gives the same samples. A second `read` in a process is refused.
"""

from __future__ import annotations

import ctypes
import hashlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from speechkd.core.config import Config
from speechkd.core.errors import InputError, unknown_name
from speechkd.data.audio.raw import RawClip
from speechkd.data.sources.base import Item, Unmatched
from speechkd.data.sources.espeak_voices import Voice, VoiceRule, read_voices, split_voices

MAX_DRAWS = 1000
"""Draws per item before giving up: the card has too few texts for its clip counts."""


class Range(Config):
    """An inclusive range of integers."""

    low: int = Field(ge=0)
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.high < self.low:
            raise ValueError(f"high ({self.high}) is below low ({self.low})")
        return self


class LanguageConfig(Config):
    """One language: espeak's voice code, words for the digits, and phrases as lists of slots (one choice per slot, in order)."""

    voice: str
    digits: list[str] = Field(min_length=2)
    phrases: list[list[list[str]]] = Field(min_length=1)


class SplitConfig(Config):
    """One split: number of clips, and whether its voices and transcripts are held out from training.

    A `reserved` split is not part of the corpus: its clips, all different from the corpus's, are for pre-training an encoder.
    """

    clips: int = Field(ge=1)
    voices: Literal["known", "unseen"] = "known"
    transcripts: Literal["open", "held_out"] = "open"
    reserved: bool = False


class EspeakConfig(Config):
    """`source:` of a card. `held_out_transcripts` is the share of texts (by digest) only for splits with `transcripts: held_out`."""

    kind: Literal["espeak"]
    seed: int = 0
    languages: dict[str, LanguageConfig] = Field(min_length=1)
    rates: dict[str, Range] = Field(min_length=1)
    pitch: Range
    pitch_range: Range
    digit_words: Range
    digit_share: float = Field(ge=0, le=1)
    held_out_transcripts: float = Field(ge=0, lt=1)
    voices: VoiceRule
    splits: dict[str, SplitConfig] = Field(min_length=1)
    silence: float = Field(default=1e-3, ge=0, lt=1)
    style: str = "synthesised"

    @model_validator(mode="after")
    def _rates_apart(self) -> EspeakConfig:
        ordered = sorted(self.rates.items(), key=lambda pair: pair[1].low)
        for (slower, a), (faster, b) in zip(ordered, ordered[1:], strict=False):
            if b.low <= a.high:
                raise ValueError(
                    f"rates `{slower}` and `{faster}` overlap ({a.low}-{a.high}, {b.low}-{b.high}): a clip would have two classes"
                )
        return self


class EspeakSource:
    """Synthesises the clips of one card. `items()` lists them without audio; `read()` synthesises some of them."""

    Config = EspeakConfig

    def __init__(self, config: EspeakConfig, data_root: Path) -> None:
        """`data_root` is unused: this source reads no raw data."""
        self.field_names: set[str] = set()
        self.unmatched: list[Unmatched] = []
        self.config = config
        known, unseen = split_voices(read_voices(data_folder() / "voices" / "!v", config.voices), config.voices)
        self.voices: dict[str, list[Voice]] = {"known": known, "unseen": unseen}

    def items(self) -> list[Item]:
        """All items of the corpus, sorted by key. No two items of any splits have the same text, voice and settings."""
        return self._draw(with_reserved=False)[0]

    def reserved_items(self) -> list[Item]:
        """The items of the reserved splits, sorted by key; none equals an item of the corpus."""
        return self._draw(with_reserved=True)[1]

    def read(self, items: Sequence[Item]) -> Iterator[RawClip]:
        """Synthesise items in the given order: float32 [T] at the library's rate, silence trimmed at both ends."""
        engine = Engine()
        for item in items:
            yield RawClip(samples_TC=_cut_silence(engine.speak(item.payload), self.config.silence), rate=engine.rate)

    def _draw(self, with_reserved: bool) -> tuple[list[Item], list[Item]]:
        """(corpus, reserved). The corpus is drawn first, so that reserved splits never change it."""
        seen: set[tuple[str | int, ...]] = set()
        drawn: dict[bool, list[Item]] = {False: [], True: []}
        for reserved in (False, True) if with_reserved else (False,):
            for split, settings in self.config.splits.items():
                if settings.reserved == reserved:
                    drawn[reserved] += [self._item(split, settings, number, seen) for number in range(settings.clips)]
        return sorted(drawn[False], key=lambda item: item.key), sorted(drawn[True], key=lambda item: item.key)

    def _item(self, split: str, settings: SplitConfig, number: int, seen: set[tuple[str | int, ...]]) -> Item:
        config = self.config
        # Cycle through all combinations of language, gender, rate and kind, so that every class gets its share in any long prefix.
        languages, rates = list(config.languages), list(config.rates)
        language, turn = languages[number % len(languages)], number // len(languages)
        voices_by_gender = _by_gender(self.voices[settings.voices])
        gender, turn = sorted(voices_by_gender)[turn % len(voices_by_gender)], turn // len(voices_by_gender)
        rate, turn = rates[turn % len(rates)], turn // len(rates)
        is_digits = int((turn + 1) * config.digit_share) > int(turn * config.digit_share)
        draw = random.Random(f"{config.seed}/{split}/{number}")
        for _ in range(MAX_DRAWS):
            voice = draw.choice(voices_by_gender[gender])
            text = self._text(draw, language, is_digits)
            speed = draw.randint(config.rates[rate].low, config.rates[rate].high)
            pitch = draw.randint(config.pitch.low, config.pitch.high)
            spread = draw.randint(config.pitch_range.low, config.pitch_range.high)
            spoken = (language, text, voice.name, speed, pitch, spread)
            if spoken in seen or self._is_held_out(language, text) != (settings.transcripts == "held_out"):
                continue
            seen.add(spoken)
            metadata: dict[str, str | int | float | bool] = {
                "transcript": text, "language": language, "gender": gender, "rate": rate, "words_per_minute": speed, "pitch": pitch,
                "speaker": voice.name, "style": config.style, "kind": "digits" if is_digits else "phrase",
            }  # fmt: skip
            payload = {
                "voice": f"{config.languages[language].voice}+{voice.file}",
                "text": text,
                "wpm": speed,
                "pitch": pitch,
                "range": spread,
            }
            return Item(key=f"{split}-{number:06d}", split=split, metadata=metadata, payload=payload)
        raise InputError(f"`{language}` has too few texts for {settings.clips} clips in split `{split}` (source.splits.{split}.clips)")

    def _text(self, draw: random.Random, language: str, is_digits: bool) -> str:
        words = self.config.languages[language]
        if is_digits:
            count = draw.randint(self.config.digit_words.low, self.config.digit_words.high)
            return " ".join(draw.choice(words.digits) for _ in range(count))
        return " ".join(draw.choice(slot) for slot in draw.choice(words.phrases))

    def _is_held_out(self, language: str, text: str) -> bool:
        digest = hashlib.sha256(f"{self.config.seed}/{language}/{text}".encode()).digest()
        return int.from_bytes(digest[:4], "big") < self.config.held_out_transcripts * 2**32


def data_folder() -> Path:
    """espeak-ng's data folder inside the installed package. Raises InputError if the package is missing."""
    try:
        import espeakng_loader
    except ModuleNotFoundError:
        raise InputError("source kind `espeak` needs the Python package `espeakng-loader` (pip install espeakng-loader)") from None
    return Path(espeakng_loader.get_data_path())


def _by_gender(voices: Sequence[Voice]) -> dict[str, list[Voice]]:
    out: dict[str, list[Voice]] = {}
    for voice in voices:
        out.setdefault(voice.gender, []).append(voice)
    return out


def _cut_silence(samples_T: np.ndarray, threshold: float) -> np.ndarray:
    """[T] -> [T'], without silence at both ends: espeak adds a final pause whose length depends on voice and rate."""
    loud = np.flatnonzero(np.abs(samples_T) > threshold)
    return samples_T[loud[0] : loud[-1] + 1] if len(loud) else samples_T


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_SYNCHRONOUS, _UTF8, _CHARACTERS = 2, 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4


class Engine:
    """libespeak-ng through ctypes; one instance per process."""

    started = False

    def __init__(self) -> None:
        import espeakng_loader

        if Engine.started:
            raise RuntimeError("espeak keeps state between utterances: read each shard in a fresh process")
        Engine.started = True
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self.rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(data_folder()).encode(), 0))
        assert self.rate > 0, "espeak-ng could not be initialised"
        self._library.espeak_ng_SetRandSeed(1)
        self._chunks: list[np.ndarray] = []
        self._callback = _CALLBACK(self._collect)  # keep a reference: the library holds only the address
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, payload: dict[str, str | int]) -> np.ndarray:
        """One utterance -> float32 [T] in -1..1."""
        voice = str(payload["voice"])
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise InputError(unknown_name("espeak voice", voice, []))
        for parameter, key in ((_RATE, "wpm"), (_PITCH, "pitch"), (_RANGE, "range")):
            self._library.espeak_SetParameter(parameter, int(payload[key]), 0)
        self._chunks = []
        text = str(payload["text"]).encode() + b"\0"
        status = self._library.espeak_Synth(text, len(text), 0, _CHARACTERS, 0, _UTF8, None, None)
        assert status == 0, f"espeak_Synth failed with {status}"
        if not self._chunks:
            return np.zeros(0, np.float32)
        return np.concatenate(self._chunks).astype(np.float32) / 32768

    def _collect(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0
