"""How a rank leaves: what is not our code's fault is one line."""

from __future__ import annotations

import pytest

from speechkd.core.errors import DataError
from speechkd.stages import worker
from speechkd.train.loop import Diverged


@pytest.mark.parametrize("error", [DataError("shard 3 is damaged"), Diverged("10 steps in a row had a non-finite loss")])
def test_damaged_data_and_a_diverged_run_show_no_traceback(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: object) -> None:
        raise error

    monkeypatch.setattr(worker, "work", fails)
    monkeypatch.setattr("sys.argv", ["worker", "nowhere"])
    with pytest.raises(SystemExit) as leaving:
        worker.main()
    assert leaving.value.code == 1 and capsys.readouterr().err == f"error on rank 0: {error}\n"
