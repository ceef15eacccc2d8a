"""Opens a recipe's prompt template with the student's tokenizer."""

from __future__ import annotations

from pathlib import Path

from speechkd.core.errors import InputError
from speechkd.models.exported import load_tokenizer
from speechkd.models.prompt import Prompt
from speechkd.teachers.prompts import PromptConfig


def open_prompt(config: PromptConfig, llm: str) -> Prompt:
    """The template with the tokenizer of `llm`, the student's language model; teacher and student share both.

    Raises InputError for a template file that is not there.
    """
    path = Path(config.template)
    if not path.is_file():
        raise InputError(f"no such file `{path}` (prompt.template)")
    return Prompt(path.read_text(encoding="utf-8").rstrip("\n"), load_tokenizer(llm), str(path))
