"""What stands behind a live teacher: its language model, tokenizer and prompt, known from configuration files and tokenizers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechkd.core.errors import InputError
from speechkd.models.architectures import meta_causal_lm
from speechkd.models.exported import MANIFEST, TOKENIZER, llm_of, load_tokenizer, read_manifest
from speechkd.models.model_folder import HUB_ID, config_home, local_folder, read_config
from speechkd.models.prompt import Prompt
from speechkd.recipe import Recipe
from speechkd.teachers.live_config import SpeechConfig, TextLlmConfig


def llm_behind(recipe: Recipe, teacher: str) -> str:
    """The language model behind a live teacher, or the student's."""
    config = recipe.live.get(teacher)
    if isinstance(config, TextLlmConfig) or isinstance(config, SpeechConfig) and is_speech_llm(recipe, config):
        return config.model
    if isinstance(config, SpeechConfig):
        return llm_of(Path(config.model), read_manifest(Path(config.model)))
    return recipe.student.llm


def tokenizer_behind(recipe: Recipe, teacher: str) -> Any:
    """The tokenizer of that language model; an export brings its own."""
    config = recipe.live.get(teacher)
    exported = isinstance(config, SpeechConfig) and not is_speech_llm(recipe, config)
    return load_tokenizer(str(Path(config.model) / TOKENIZER) if exported else llm_behind(recipe, teacher))  # type: ignore[union-attr]


def is_speech_llm(recipe: Recipe, config: SpeechConfig) -> bool:
    """Whether a speech teacher is a whole speech LLM, not an export."""
    if (Path(config.model) / MANIFEST).is_file():
        return False
    home = Path(config_home(config.model, recipe.student.config_root))
    on_the_hub = not Path(config.model).exists() and HUB_ID.fullmatch(config.model) is not None
    return (home / "config.json").is_file() or on_the_hub


def depth(recipe: Recipe, teacher: str) -> int:
    """Layers of that language model."""
    layers: int = _text_config(recipe, teacher).num_hidden_layers
    return layers


def vocabulary_width(recipe: Recipe, teacher: str) -> int:
    """Width of its output, padding included."""
    width: int = _text_config(recipe, teacher).vocab_size
    return width


def _text_config(recipe: Recipe, teacher: str) -> Any:
    return read_config(local_folder(config_home(llm_behind(recipe, teacher), recipe.student.config_root), weights=False)).get_text_config()


def teacher_prompts(recipe: Recipe, prompt: Prompt) -> dict[str, Prompt]:
    """The prompt of every live teacher that reads, in its own tokenizer. Raises InputError where its turns end with another token."""
    prompts = {}
    for name, config in recipe.live.items():
        if config.kind == "self":
            prompts[name] = prompt
        elif isinstance(config, TextLlmConfig):
            prompts[name] = Prompt(prompt.text, load_tokenizer(config.model), recipe.prompt.template)
            if prompts[name].end_of_turn != prompt.end_of_turn:
                raise InputError(f"`{config.model}` ends a turn with another token than the student's LLM (live.{name}.model)")
    return prompts


def live_parameters(recipe: Recipe) -> dict[str, int]:
    """Parameters of the language models that live teachers bring with them, from configuration files alone."""
    counts = {}
    for name, config in recipe.live.items():
        if isinstance(config, (TextLlmConfig, SpeechConfig)):
            llm = meta_causal_lm(config_home(llm_behind(recipe, name), recipe.student.config_root))
            counts[name] = sum(p.numel() for p in llm.parameters())
    return counts
