"""doctor runs every fused op once and says which implementation it was, and when that is wrong."""

from __future__ import annotations

import pytest
from torch import Tensor

from speechkd import kernels
from speechkd.kernels import weighted_cka as cka
from speechkd.kernels.dispatch import Implementation, no_obstacle
from speechkd.stages.doctor.kernels import check_kernels


def test_each_op_has_a_line_with_the_reason_why_nothing_better_runs() -> None:
    found = {finding.check: finding for finding in check_kernels()}
    halves = {"stack_norm_linear", "act_linear"}  # of stack_norm_mlp, for layers that are modules of their own
    assert set(found) == set(kernels.__all__) | halves
    assert all(finding.level == "ok" for finding in found.values())
    assert found["linear_kl"].text.startswith("chunked (not triton: ")


def test_an_implementation_that_is_wrong_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    def wrong(*args: object) -> Tensor:
        return 1.1 * reference(*args)  # type: ignore[no-any-return]

    table = sys.modules[cka.__module__]._IMPLEMENTATIONS
    reference = table["reference"].run
    monkeypatch.setitem(table, "closed", Implementation(wrong, no_obstacle))
    [problem] = [finding for finding in check_kernels() if finding.level != "ok"]
    assert problem.check == "weighted_cka" and problem.text.startswith("closed is 10.0% off") and "impl: reference" in problem.way_out
