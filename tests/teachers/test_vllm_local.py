"""The backend `vllm`: one line if it is not installed; on a stand-in engine its signals equal those of `hf_local`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.data.columns.signals import SignalsConfig, decode
from speechkd.models.exported import load_tokenizer
from speechkd.models.prompt import Prompt
from speechkd.teachers import TEACHERS
from speechkd.teachers.base import Answer, Request
from tests.teachers.engine import package

LLM = str(Path(__file__).parents[2] / "standins/llm")
TOPK = {"topk": {"k": 8, "bits": 32}}
SETTINGS = {"model": LLM, "fields": ["language"], "dtype": "float32", "max_new_tokens": 24, "signals": TOPK}


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return Prompt("{{ audio }} {{ question }}", load_tokenizer(LLM))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_without_the_package_the_line_says_how_to_get_it(prompt: Prompt) -> None:
    part = TEACHERS.get("vllm")
    with pytest.raises(
        InputError, match=r"^backend `vllm` needs the package of that name: pip install 'speechkd\[vllm\]' .teachers: backend.$"
    ):
        part(part.Config.model_validate(SETTINGS), prompt)


def test_top_k_of_given_answers_is_that_of_the_model(prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", package())
    engine, local = (TEACHERS.get(name)(TEACHERS.get(name).Config.model_validate(SETTINGS), prompt) for name in ("vllm", "hf_local"))
    requests = [Request(f"c{i}", "open-0", "What is it?", {"language": "german"}) for i in range(3)]
    answers = [
        Answer("drei", prompt.answer("drei"), 9, "eos"),
        Answer("", [], 9, "error", "no"),
        Answer("x y", prompt.answer("x y"), 9, "eos"),
    ]
    store, width = SignalsConfig.model_validate(TOPK), 1545
    scored = [teacher.score(requests, answers) for teacher in (engine, local)]  # type: ignore[attr-defined]
    assert scored[0][1] == scored[1][1] == {}
    for row in (0, 2):
        mine, truth = (decode(store, ["topk"], found[row], len(answers[row].tokens), width) for found in scored)
        assert torch.equal(mine.ids_TK, truth.ids_TK)
        torch.testing.assert_close(mine.logp_TK, truth.logp_TK, atol=2e-4, rtol=1e-4)


def test_what_the_engine_cannot_give_is_refused_in_the_recipe() -> None:
    with pytest.raises(ValueError, match="topk.temperature must be 1"):
        TEACHERS.get("vllm").Config.model_validate(SETTINGS | {"signals": {"topk": {"k": 8, "temperature": 2}}})
    assert "topk" in TEACHERS.get("vllm").SIGNALS and "hidden" not in TEACHERS.get("vllm").SIGNALS
