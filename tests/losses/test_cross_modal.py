"""Two channels: one formula, rows by channel, stored and live teachers alike, nothing to learn where student is teacher."""

from __future__ import annotations

import pytest
import torch

from speechkd.core.types import TeacherSignals
from speechkd.kernels.logits import Head, Plain
from speechkd.losses.base import Supervision
from speechkd.losses.cross_modal import Config, cross_modal_kd
from speechkd.losses.response_ce import response_ce
from tests.losses.method_cases import HEAD, D, V, draw, stored_cross_modal

T = 7
MASK = torch.arange(T) != 2
SPEECH = torch.arange(T) % 2 == 0
TARGETS = torch.arange(T) % V


def test_the_channels_share_out_the_rows() -> None:
    x, teacher = draw(T, V, seed=1), draw(T, V, seed=2)
    channels = {"both": MASK, "speech": MASK & SPEECH, "text": MASK & ~SPEECH}
    out = {channel: cross_modal_kd(Plain(x), Plain(teacher), TARGETS, mask_T, Config()) for channel, mask_T in channels.items()}
    torch.testing.assert_close(out["speech"].total + out["text"].total, out["both"].total)
    assert (out["speech"].count, out["text"].count, out["both"].count) == (3, 3, 6)


def test_a_student_that_is_its_teacher_has_no_kl() -> None:
    """Text to text with the student's own LLM and LoRA off: the same hidden states, so exactly the CE is left."""
    hidden = draw(T, D, seed=3)
    for impl in ("reference", "chunked"):
        configs = [Config(kl_weight=weight, impl=impl) for weight in (0.5, 0.0)]
        totals = [cross_modal_kd(Head(hidden, HEAD), Head(hidden, HEAD), TARGETS, MASK, config).total for config in configs]
        assert totals[0] == totals[1]


def test_weight_zero_is_the_ce_ablation() -> None:
    x, teacher = draw(T, V, seed=4), draw(T, V, seed=5)
    ablation = cross_modal_kd(Plain(x), Plain(teacher), TARGETS, MASK, Config(kl_weight=0.0))
    assert ablation.total == response_ce(Plain(x), TARGETS, MASK).total


def test_stored_and_live_teachers_agree() -> None:
    """With the whole vocabulary stored, log-probs from a shard give the live teacher's loss and gradient."""
    hidden, teacher = draw(T, D, seed=6).requires_grad_(), draw(T, D, seed=7)
    live = cross_modal_kd(Head(hidden, HEAD), Head(teacher, HEAD), TARGETS, MASK, Config())
    logp, ids = (teacher @ HEAD.T / 2.0).log_softmax(1).sort(1, descending=True)
    stored = stored_cross_modal(hidden, HEAD, Supervision(mask_T=MASK, targets_T=TARGETS, signals=TeacherSignals(ids_TK=ids, logp_TK=logp)))
    torch.testing.assert_close(stored.total, live.total)
    torch.testing.assert_close(*(torch.autograd.grad(out.total, hidden)[0] for out in (stored, live)))


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="kl_weight"):
        Config(kl_weight=-0.1)
