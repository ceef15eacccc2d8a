"""The prompt of a recipe, with the student's tokenizer."""

from __future__ import annotations

from pathlib import Path

from speechkd.core.errors import InputError
from speechkd.models.exported import load_tokenizer
from speechkd.models.prompt import Prompt
from speechkd.recipe import Recipe


def open_prompt(recipe: Recipe) -> Prompt:
    """The recipe's template with the student's tokenizer (teacher and student share it)."""
    path = Path(recipe.prompt.template)
    if not path.is_file():
        raise InputError(f"no such file `{path}` (prompt.template)")
    return Prompt(path.read_text(encoding="utf-8").rstrip("\n"), load_tokenizer(recipe.student.llm), str(path))
