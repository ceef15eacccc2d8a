"""Word and character error rates as the field reports them: both texts through Whisper's normaliser of the language, then aligned.

English: Whisper's English normaliser (numbers, contractions, spelling). Other languages: its basic one. Scripts without spaces: the
basic one with letters split, so that the words counted are characters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from speechkd.core.errors import InputError
from speechkd.core.files import read_json
from speechkd.evaluation.scorers import Grade, unparsed
from speechkd.evaluation.scorers.characters import spaceless
from speechkd.evaluation.scorers.edits import align
from speechkd.evaluation.scorers.parsers import Asked, ParsersConfig


@lru_cache(maxsize=8)
def normaliser(language: str, split: bool, spelling: str | None) -> Callable[[str], str]:
    """Whisper's normaliser. Raises InputError for a spelling table that is none."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    if split:
        return BasicTextNormalizer(split_letters=True)
    if not is_english(language):
        return BasicTextNormalizer()
    return EnglishTextNormalizer(_spelling(Path(spelling)) if spelling is not None else {})


def is_english(language: str) -> bool:
    """Whether metadata names English, by name or code (`english`, `en`, `en-GB`)."""
    name = language.strip().lower()
    return name == "english" or name.replace("_", "-").split("-")[0] in ("en", "eng")


def _spelling(path: Path) -> dict[str, str]:
    try:
        table = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read `{path}`: {error} (evaluation.parsers.whisper_spelling)") from None
    if not isinstance(table, dict) or not all(isinstance(word, str) for word in table.values()):
        raise InputError(
            f"`{path}` is no table of words: name the normalizer.json of a Whisper checkpoint (evaluation.parsers.whisper_spelling)"
        )
    return table


def grade(answer: str, asked: Asked, config: ParsersConfig) -> Grade | None:
    """For words and characters; unparsable: an answer of which the normaliser leaves nothing."""
    if asked.kind == "choice":
        return None
    normalise = normaliser(asked.language, spaceless(asked.reference), config.whisper_spelling)
    given, wanted = normalise(answer).split(), normalise(asked.reference).split()
    return unparsed(len(wanted)) if not given else align(given, wanted)
