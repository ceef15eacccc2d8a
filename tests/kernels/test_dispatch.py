"""Choosing an implementation: in order, by name, and each first use reported once."""

from __future__ import annotations

import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.kernels import dispatch

X = torch.zeros(1, 1)
ANY = dispatch.Implementation(min, dispatch.no_obstacle)
NOWHERE = dispatch.Implementation(max, lambda given: "no such device here")
FAST_FIRST = {"fast": NOWHERE, "plain": ANY}


def test_auto_takes_the_first_that_can_and_knows_why_not_the_others() -> None:
    choice = dispatch.choose("op", "auto", FAST_FIRST, X)
    assert choice == ("plain", ("not fast: no such device here",))
    assert dispatch.choose("op", "auto", {"fast": ANY, "plain": ANY}, X).name == "fast"


def test_auto_passes_over_what_is_slower_at_this_size_and_its_name_is_obeyed() -> None:
    table = {"large": dispatch.Implementation(max, dispatch.no_obstacle, lambda given: "one row"), "plain": ANY}
    assert dispatch.choose("op", "auto", table, X) == ("plain", ("not large: one row",))
    assert dispatch.choose("op", "large", table, X).name == "large"


def test_a_name_is_obeyed_or_refused_never_replaced() -> None:
    assert dispatch.choose("op", "plain", FAST_FIRST, X).name == "plain"
    with pytest.raises(InputError, match="`fast` of `op` cannot run: no such device here"):
        dispatch.choose("op", "fast", FAST_FIRST, X)
    with pytest.raises(InputError, match="did you mean `plain`"):
        dispatch.choose("op", "plane", FAST_FIRST, X)
    with pytest.raises(InputError, match="no implementation"):
        dispatch.choose("op", "auto", {"fast": NOWHERE}, X)


def test_the_choice_is_news_once_and_nobody_who_does_not_ask_hears_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_seen", set())
    monkeypatch.setattr(dispatch, "_news", [])
    for _ in range(3):
        assert dispatch.pick("op", "auto", FAST_FIRST, X) is min
    [(op, choice)] = dispatch.news()
    assert (op, str(choice)) == ("op", "plain (not fast: no such device here)") and not dispatch.news()
    assert not any(capsys.readouterr())
