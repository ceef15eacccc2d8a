"""What a recipe's step costs in floating-point operations, from configuration files alone."""

from __future__ import annotations

from speechkd.models.architectures import meta_causal_lm
from speechkd.models.flops import ModelFlops, student_flops
from speechkd.models.language_model import LanguageModel
from speechkd.models.model_folder import config_home
from speechkd.models.student import meta_student
from speechkd.recipe import Recipe
from speechkd.stages.assembly.model_facts import teacher_llm
from speechkd.teachers.live_config import SelfConfig, SnapshotConfig, SpeechConfig, TextLlmConfig


def model_flops(recipe: Recipe) -> ModelFlops:
    """Costs of the recipe's student and live teachers, built on the meta device: nothing is allocated."""
    student, root = meta_student(recipe.student), recipe.student.config_root
    heard_by, views = [], {}
    for name, config in recipe.live.items():
        if isinstance(config, (TextLlmConfig, SpeechConfig)):
            llm = LanguageModel(meta_causal_lm(config_home(teacher_llm(config, recipe.student), root)))
        else:
            llm = student.llm
        if isinstance(config, (SelfConfig, TextLlmConfig)):
            views[name] = llm
        else:
            assert isinstance(config, (SnapshotConfig, SpeechConfig))
            heard_by.append(llm)
    return student_flops(student, heard_by, views)
