"""A server of the export is recognised; of a sabotaged one, the cause is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from speechkd.models.exported import DistilledStudent, load_student
from speechkd.serving.alterations import alterations
from speechkd.serving.app import Serving
from speechkd.stages.verify import verify
from tests.serving.conftest import served

SABOTAGE = (
    "the LoRA adapter of the language model is not applied",
    "LoRA's scale is 8 (alpha), was trained with 2 (alpha / r)",
    "the prompt template is not the export's: the question, then the clip",
    "the clip stands one position late",
)


def test_a_server_of_the_export_is_the_same(url: str, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(url, export, [], None, None, False) == 0
    assert capsys.readouterr().out.startswith("same: ")


@pytest.mark.parametrize("fault", [SABOTAGE[0], *(pytest.param(fault, marks=pytest.mark.slow) for fault in SABOTAGE[1:])])
def test_a_faulty_server_is_told_by_its_fault(fault: str, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faulty: Any = load_student(export)
    with alterations(faulty)[fault](faulty), served(faulty, Serving(model="student")) as url:
        assert verify(url, export, [], None, None, False) == 1
    assert f"cause: {fault}" in capsys.readouterr().out


def test_an_alteration_leaves_nothing_behind(student: DistilledStudent, url: str, export: Path) -> None:
    for alteration in alterations(student).values():
        with alteration(student):
            pass
    assert verify(url, export, [], None, None, True) == 0
