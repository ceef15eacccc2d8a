"""Selects espeak's voice variants, reads their gender and holds some out, by rules over the library's voice files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from speechkd.core.config import Config
from speechkd.core.errors import InputError, unknown_name

DEFAULT_VOICING, DEFAULT_ECHO = 64, 0
"""espeak's defaults for voice files without these settings."""


class VoiceRule(Config):
    """Selects variants. A variant must state its gender; whispers (voicing below `min_voicing`) and echoes (above `max_echo`) are excluded.

    Variants with the same formant table (a voice and its re-pitched copies) are one family, which is never on both sides of the split.
    """

    min_voicing: int = 25
    max_echo: int = 100
    unseen_families_per_gender: int = Field(default=4, ge=0)
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Voice:
    """One variant: its file name, stated name, gender, and family (the first file with the same formants)."""

    file: str
    name: str
    gender: str
    family: str


def check_voice(data: Path, asked: str, where: str) -> None:
    """Raises InputError if espeak's data folder has no such voice (`en-us+f2`, say); espeak itself ignores an unknown variant silently."""
    voice, _, variant = asked.partition("+")
    files = [path for path in (data / "lang").rglob("*") if path.is_file()]
    if voice.lower() not in {path.name.lower() for path in files} | {_stated_name(path).lower() for path in files}:
        raise InputError(unknown_name("espeak voice", voice, [path.name.lower() for path in files], where))
    variants = [path.name for path in (data / "voices" / "!v").iterdir()]
    if variant and variant not in variants:
        raise InputError(unknown_name("variant of an espeak voice", variant, variants, where))


def _stated_name(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(" ")[2].strip() for line in lines if line.startswith("name ")), "")


def read_voices(folder: Path, rule: VoiceRule) -> list[Voice]:
    """All variants in `folder` that the rule selects, sorted by file name."""
    voices: list[Voice] = []
    families: dict[tuple[str, tuple[str, ...]], str] = {}
    for path in sorted(folder.iterdir()):
        lines = [line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.split()]
        stated = {words[0]: words[1:] for words in reversed(lines)}
        gender = stated.get("gender", [""])[0].lower()
        voicing = int(stated["voicing"][0]) if "voicing" in stated else DEFAULT_VOICING
        echo = int(stated["echo"][1]) if "echo" in stated else DEFAULT_ECHO
        if gender not in ("female", "male") or voicing < rule.min_voicing or echo > rule.max_echo:
            continue
        formants = tuple(" ".join(words) for words in lines if words[0] == "formant")
        family = families.setdefault((gender, formants), path.name)
        voices.append(Voice(file=path.name, name=" ".join(stated["name"]), gender=gender, family=family))
    if not voices:
        raise InputError(f"no espeak voice in `{folder}` passes the rule (source.voices)")
    return voices


def split_voices(voices: list[Voice], rule: VoiceRule) -> tuple[list[Voice], list[Voice]]:
    """(known, unseen): of each gender, the first `unseen_families_per_gender` families by name digest are held out from training."""
    held_out: set[str] = set()
    for gender in sorted({voice.gender for voice in voices}):
        families = sorted({voice.family for voice in voices if voice.gender == gender}, key=lambda name: _digest(rule.salt, name))
        held_out |= set(families[: rule.unseen_families_per_gender])
    return [v for v in voices if v.family not in held_out], [v for v in voices if v.family in held_out]


def _digest(salt: str, name: str) -> str:
    return hashlib.sha256(f"{salt}{name}".encode()).hexdigest()
