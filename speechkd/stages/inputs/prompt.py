"""Opens a recipe's prompt template with the tokenizer of the student, and of each live teacher that reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from speechkd.core.errors import InputError
from speechkd.core.files import no_such_file
from speechkd.models.exported import load_tokenizer
from speechkd.models.prompt import Prompt
from speechkd.teachers.live_config import LiveConfig, TextLlmConfig
from speechkd.teachers.prompts import PromptConfig


def open_prompt(config: PromptConfig, llm: str) -> Prompt:
    """The template with the tokenizer of `llm`, the student's language model; teacher and student share both.

    Raises InputError for a template file that is not there.
    """
    path = Path(config.template)
    if not path.is_file():
        raise InputError(f"{no_such_file(path)} (prompt.template)")
    return Prompt(path.read_text(encoding="utf-8").rstrip("\n"), load_tokenizer(llm), str(path))


def teacher_prompts(live: Mapping[str, LiveConfig], prompt: Prompt, template: str) -> dict[str, Prompt]:
    """The prompt of every live teacher that reads, with its own tokenizer; `template` is the prompt's file, for error messages.

    Raises InputError where a teacher ends its turns with another token than the student.
    """
    prompts = {}
    for name, config in live.items():
        if config.kind == "self":
            prompts[name] = prompt
        elif isinstance(config, TextLlmConfig):
            prompts[name] = Prompt(prompt.text, load_tokenizer(config.model), template)
            if prompts[name].end_of_turn != prompt.end_of_turn:
                raise InputError(
                    f"`{config.model}` ends a turn with another token than the student's LLM: name a model of the same "
                    f"family (live.{name}.model)"
                )
    return prompts
