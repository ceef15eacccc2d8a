"""Token ids that the student and a live teacher share; losses compare their distributions on these ids only."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.models.exported import load_tokenizer
from speechkd.models.model_folder import config_home
from speechkd.models.student_config import StudentConfig
from speechkd.stages.assembly.model_facts import student_vocabulary_width, teacher_llm, teacher_tokenizer, teacher_vocabulary_width
from speechkd.teachers.live_config import LiveConfig


def shared_ids(teacher: str, live: LiveConfig, student: StudentConfig) -> Tensor | None:
    """Mask of the ids that both outputs have: whether student and live teacher mean the same token; None where one vocabulary serves both.

    Raises InputError naming the first id that stands for two tokens: the loss would compare probabilities of different tokens.
    """
    name = teacher_llm(live, student)
    if name == student.llm:
        return None
    tokenizers = load_tokenizer(student.llm), teacher_tokenizer(live, student)
    mine, other = ({number: token for token, number in tokenizer.get_vocab().items()} for tokenizer in tokenizers)
    for number in sorted(mine.keys() & other.keys()):
        if mine[number] != other[number]:
            raise InputError(
                f"vocabularies disagree: id {number} is `{mine[number]}` for the student (`{student.llm}`), `{other[number]}` for "
                f"`{name}` (live.{teacher}): distil its answers instead, or choose a teacher of the same family"
            )
    widths = student_vocabulary_width(student), teacher_vocabulary_width(live, student)
    shared_W = torch.zeros(min(widths), dtype=torch.bool)
    shared_W[[number for number in mine.keys() & other.keys() if number < len(shared_W)]] = True
    return None if widths[0] == widths[1] and bool(shared_W.all()) else shared_W


def missing_tokenizer(live: LiveConfig, student: StudentConfig) -> str | None:
    """The first of student and live teacher of which this machine has a configuration file but no tokenizer; else None."""
    names = student.llm, teacher_llm(live, student)
    for name in names if names[0] != names[1] else ():
        if config_home(name, student.config_root) != name and not _cached(name):
            return name
    return None


def _cached(name: str) -> bool:
    """Whether a hub model's tokenizer is on this machine; the hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in ("tokenizer.json", "tokenizer.model", "vocab.json"))
