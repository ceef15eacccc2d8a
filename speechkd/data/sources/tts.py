"""Synthesises a text field: the spoken questions of cross-modal distillation (arXiv 2509.14930) and of Audio-MLQA (arXiv 2603.07025).

Texts come from any row source; the voice is espeak-ng, a server with the OpenAI API, or a user's command.
"""

from __future__ import annotations

import resource
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from speechkd.core.config import Config, build
from speechkd.core.errors import InputError, unknown_name
from speechkd.data.audio.clips import decode_bytes
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources.base import Item, Source, Unmatched, without_audio
from speechkd.data.sources.espeak import Engine, data_folder
from speechkd.data.sources.espeak_voices import check_voice
from speechkd.data.sources.speech_server import MAX_ANSWER, ServerVoice, SpeechServer

ROW_KINDS = ("jsonl", "csv", "hf_disk", "messages")


class EspeakVoice(Config):
    """espeak-ng. `voices` are espeak's names, such as `en-us` or `de+f2`."""

    engine: Literal["espeak"]
    voices: list[str] = Field(min_length=1)
    words_per_minute: int = Field(default=170, ge=80, le=450)
    pitch: int = Field(default=50, ge=0, le=100)
    pitch_range: int = Field(default=50, ge=0, le=100)


class CommandVoice(Config):
    """A user's program, run once per text, without a shell. It reads the file {text} and writes {wav}; {voice} is the voice's name."""

    engine: Literal["command"]
    argv: list[str] = Field(min_length=1)
    """e.g. [piper, --model, "{voice}", --input-file, "{text}", --output-file, "{wav}"]"""
    voices: list[str] = Field(default=["default"], min_length=1)
    timeout_s: float = Field(default=120, gt=0)

    @field_validator("argv")
    @classmethod
    def _says_where(cls, argv: list[str]) -> list[str]:
        missing = next((placeholder for placeholder in ("{text}", "{wav}") if not any(placeholder in word for word in argv)), None)
        if missing:
            raise ValueError(f"argv must contain `{missing}`: the text is read from a file, and the audio written to one")
        return argv


class TtsConfig(Config):
    """Every row's text becomes a clip; rows without text are text-only. The voice is chosen by the key and recorded in `voice_field`."""

    kind: Literal["tts"]
    rows: dict[str, Any]
    """a source block of kind jsonl, csv, hf_disk or messages; its audio is not read"""
    text_field: str
    """raw field to synthesise"""
    voice: Annotated[EspeakVoice | ServerVoice | CommandVoice, Field(discriminator="engine")]
    voice_field: str = "voice"
    max_letters: int = Field(default=2000, ge=1)
    """longer texts go to quarantine"""


class TtsSource:
    """Synthesises the rows of another source."""

    Config = TtsConfig

    def __init__(self, config: TtsConfig, data_root: Path) -> None:
        self.field_names: set[str] = set()
        self.unmatched: list[Unmatched] = []
        self.config = config
        if isinstance(config.voice, EspeakVoice):
            for voice in config.voice.voices:
                check_voice(data_folder(), voice, "card: source.voice.voices")
        self.rows = _row_source(config.rows, data_root)

    def items(self) -> list[Item]:
        """The rows, sorted by key, without synthesis. Raises InputError if no row has the text field."""
        rows = self.rows.items()
        self.field_names |= self.rows.field_names
        field, voices = self.config.text_field, self.config.voice.voices
        if rows and not any(field in row.metadata for row in rows):
            raise InputError(unknown_name("field", field, {name for row in rows for name in row.metadata}, "card: source.text_field"))
        silent = [row.key for row in rows if not str(row.metadata.get(field, "")).strip()]
        self.unmatched = without_audio(f"rows have no `{field}` to speak", silent, len(rows))
        items = []
        for row in rows:
            text = str(row.metadata.get(field, "")).strip()
            if not text:
                items.append(replace(row, payload={"text": ""}))
                continue
            voice = voices[int.from_bytes(sha256(row.key.encode(errors="replace")).digest()[:4], "big") % len(voices)]
            metadata = {**row.metadata, self.config.voice_field: voice} if self.config.voice_field else row.metadata
            items.append(replace(row, metadata=metadata, payload={"text": text, "voice": voice}))
        return items

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Synthesise items, in order."""
        texts_and_voices = [(i.payload["text"], i.payload["voice"]) for i in items if 0 < len(i.payload["text"]) <= self.config.max_letters]
        clips = _speak(self.config.voice, texts_and_voices)
        for item in items:
            letters = len(item.payload["text"])
            if letters > self.config.max_letters:
                yield Rejected(f"text has {letters} letters, allowed {self.config.max_letters}")
            else:
                yield next(clips) if letters else None


def _row_source(block: dict[str, Any], data_root: Path) -> Source:
    from speechkd.data.sources import SOURCES

    kind = block.get("kind")
    if kind not in ROW_KINDS:
        raise InputError(unknown_name("source of texts", str(kind), ROW_KINDS, "card: source.rows.kind"))
    source = SOURCES.get(str(kind), "card: source.rows.kind")
    return source(build(source.Config, block, "card: source.rows"), data_root)


def _speak(voice: EspeakVoice | ServerVoice | CommandVoice, texts_and_voices: Sequence[tuple[str, str]]) -> Iterator[RawClip | Rejected]:
    if isinstance(voice, ServerVoice):
        yield from SpeechServer(voice).speak(texts_and_voices)
    elif isinstance(voice, CommandVoice):
        yield from (_run(voice, text, name) for text, name in texts_and_voices)
    else:
        engine = Engine()
        settings = {"wpm": voice.words_per_minute, "pitch": voice.pitch, "range": voice.pitch_range}
        for text, name in texts_and_voices:
            yield RawClip(engine.speak({"text": text, "voice": name, **settings}), engine.rate)


def _run(voice: CommandVoice, text: str, name: str) -> RawClip | Rejected:
    with tempfile.TemporaryDirectory(prefix="speechkd-tts-") as folder:
        text_file, wav = Path(folder, "text.txt"), Path(folder, "speech.wav")
        text_file.write_text(text, encoding="utf-8")
        placeholders = {"{text}": str(text_file), "{wav}": str(wav), "{voice}": name}
        argv = [_filled(word, placeholders) for word in voice.argv]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=voice.timeout_s, cwd=folder, check=False, preexec_fn=_unlimited
            )
        except subprocess.TimeoutExpired:
            return Rejected(f"`{argv[0]}` took longer than {voice.timeout_s:g} s")
        except OSError as error:
            raise InputError(f"cannot run `{argv[0]}`: {error.strerror} (card: source.voice.argv)") from None
        if done.returncode:
            return Rejected(f"`{argv[0]}` ended with {done.returncode}: {done.stderr[-200:].decode('utf-8', 'replace').strip()}")
        if wav.is_symlink() or not wav.is_file() or wav.stat().st_size > MAX_ANSWER:
            return Rejected(f"`{argv[0]}` wrote no audio of at most {MAX_ANSWER} bytes to {{wav}}")
        return decode_bytes(wav.read_bytes())


def _unlimited() -> None:
    """Lift the decoder's memory and CPU limits for the user's program."""
    for bound in (resource.RLIMIT_AS, resource.RLIMIT_CPU):
        _, hard = resource.getrlimit(bound)
        resource.setrlimit(bound, (hard, hard))


def _filled(word: str, placeholders: dict[str, str]) -> str:
    for placeholder, value in placeholders.items():
        word = word.replace(placeholder, value)
    return word
