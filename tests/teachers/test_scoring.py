"""Scored signals equal those of a dense pass of the same model, whatever the batch, and decode as losses expect them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.core.types import TeacherSignals
from speechkd.data.columns.signals import HiddenStore, SampledStore, SignalsConfig, TopKStore, decode
from speechkd.kernels.logits import Plain
from speechkd.losses.divergences import forward_kl
from speechkd.losses.sampled_kd import sampled_ce
from speechkd.losses.topk_kd import topk_kl
from speechkd.models.exported import load_tokenizer
from speechkd.models.pretrained import load_causal_lm
from speechkd.models.prompt import Prompt
from speechkd.teachers import TEACHERS, scoring
from speechkd.teachers.base import Request
from speechkd.teachers.hf_local import HfLocalTeacher
from speechkd.teachers.scoring import ScoredResponse, Scorer, draw
from tests.data.codec_error import logp_error

LLM = str(Path(__file__).parents[2] / "standins/llm")
V, LAYERS = 1545, 4


@pytest.fixture(scope="module")
def model() -> Any:
    return load_causal_lm(LLM, torch.float32)


def some(count: int) -> list[ScoredResponse]:
    """Prompts and responses of different lengths."""
    g = torch.Generator().manual_seed(count)
    ids = torch.randint(5, V, (count, 60), generator=g).tolist()
    return [ScoredResponse(row[: 10 + 3 * i], row[30 : 31 + 2 * i], f"c{i}.open-0") for i, row in enumerate(ids)]


@torch.no_grad()
def dense(model: Any, item: ScoredResponse) -> tuple[Tensor, list[Tensor]]:
    """Logits [T, V] and states of every layer at the positions that predict the response, in a pass of its own."""
    out = model(input_ids=torch.tensor([[*item.prompt, *item.response]]), output_hidden_states=True)
    rows = slice(len(item.prompt) - 1, len(item.prompt) + len(item.response) - 1)
    return out.logits[0, rows].float(), [state[0, rows] for state in out.hidden_states]


def stored(model: Any, signals: SignalsConfig, items: list[ScoredResponse]) -> list[TeacherSignals]:
    """Scored, encoded, decoded."""
    scored = Scorer(model, signals).score(items)
    return [decode(signals, signals.names, s, len(item.response), V) for s, item in zip(scored, items, strict=True)]


def test_the_whole_vocabulary_in_float32_is_the_live_teacher(model: Any) -> None:
    items = some(5)
    for item, out in zip(items, stored(model, SignalsConfig(topk=TopKStore(k=V, bits=32, temperature=1.7)), items), strict=True):
        logits_TV, _ = dense(model, item)
        assert torch.equal(out.ids_TK.long(), torch.arange(V).expand(len(item.response), V)) and (out.tail_logp_T == -torch.inf).all()
        torch.testing.assert_close(out.logp_TK, (logits_TV / 1.7).log_softmax(1), rtol=0, atol=2e-5)
        student_TV = (logits_TV + torch.randn(logits_TV.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
        mask_T = torch.ones(len(item.response), dtype=torch.bool)
        kept = topk_kl(student_TV, out.ids_TK, out.logp_TK, mask_T, out.tail_logp_T, temperature=1.7)
        live = forward_kl(student_TV, logits_TV, mask_T, temperature=1.7)
        torch.testing.assert_close(kept.total, live.total, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(*(torch.autograd.grad(out.total, student_TV)[0] for out in (kept, live)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_stored_topk_gives_the_live_loss_and_gradient_within_the_stated_bound(model: Any, bits: int) -> None:
    """The same K ids of the dense teacher, unrounded, are the truth; e is the codec's bound on each log-prob and on the tail.

    Normalised again, every outcome's probability is off by at most a factor exp(2 e): so the gradient's L1 norm by expm1(2 e), and the loss
    by what p |log p / q| changes by.
    """
    items, k = some(4), 32
    for item, out in zip(items, stored(model, SignalsConfig(topk=TopKStore(k=k, bits=bits)), items), strict=True):  # type: ignore[arg-type]
        logits_TV, _ = dense(model, item)
        logp_TV = logits_TV.double().log_softmax(1)
        ids_TK = out.ids_TK.long()
        live_TK, tail_T = logp_TV.gather(1, ids_TK), logp_TV.scatter(1, ids_TK, -torch.inf).logsumexp(1)
        assert live_TK.min(1).values.ge(logp_TV.topk(k, 1).values[:, -1] - 1e-6).all()
        student_TV = torch.randn(logits_TV.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
        logq_TV = student_TV.detach().log_softmax(1)
        error_TK = torch.from_numpy(logp_error(live_TK.numpy(), bits))
        tail_error_T = 2**-11 * tail_T.abs() + 2**-24
        for t in range(len(item.response)):
            at, one = slice(t, t + 1), torch.ones(1, dtype=torch.bool)
            kept = topk_kl(student_TV[at], ids_TK[at], out.logp_TK[at], one, out.tail_logp_T[at])
            live = topk_kl(student_TV[at], ids_TK[at], live_TK[at], one, tail_T[at])
            grads = [torch.autograd.grad(x.total, student_TV, retain_graph=True)[0][t] for x in (kept, live)]
            e = max(error_TK[t].max().item(), tail_error_T[t].item())
            change = torch.expm1(torch.tensor(2 * e, dtype=torch.float64)).item()
            p_K = torch.cat([live_TK[t], tail_T[at]])
            q_K = torch.cat([logq_TV[t, ids_TK[t]], logq_TV[t].scatter(0, ids_TK[t], -torch.inf).logsumexp(0, keepdim=True)])
            assert (grads[0] - grads[1]).abs().sum() <= change + 1e-5
            bound = change * (p_K.exp() * (p_K - q_K).abs()).sum() + 2 * e * (1 + change)
            assert (kept.total - live.total).abs() <= bound + 1e-5
            assert kept.total >= -1e-6


def test_signals_do_not_depend_on_the_batch(model: Any) -> None:
    everything = SignalsConfig(
        topk=TopKStore(k=8, bits=16), sampled=SampledStore(draws=30, temperature=0.8), hidden=HiddenStore(layers=[0, 2, 4], dtype="float32")
    )
    items = some(6)
    together = stored(model, everything, items)
    alone = [out for item in items for out in stored(model, everything, [item])]
    assert [{name for name, _ in out.items()} for out in alone] == [
        {"ids_TK", "logp_TK", "tail_logp_T", "sampled_ids_TN", "sampled_weights_TN", "hidden_TLE"}
    ] * 6
    for item, one, other in zip(items, together, alone, strict=True):
        states = dense(model, item)[1]
        assert torch.equal(one.ids_TK, other.ids_TK) and torch.equal(one.sampled_ids_TN, other.sampled_ids_TN)
        torch.testing.assert_close(one.hidden_TLE, torch.stack([states[layer] for layer in (0, 2, 4)], 1), rtol=1e-3, atol=2e-4)
    assert len(together[0].ids_TK) == 1 and len(together[5].ids_TK) == 11


def test_only_predicting_positions_reach_the_head_and_a_chunk_at_a_time(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "rows_per_chunk", lambda vocabulary, device: 4)
    whole, seen = stored(model, SignalsConfig(topk=TopKStore(k=4)), some(4)), []
    hook = model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    again = stored(model, SignalsConfig(topk=TopKStore(k=4)), some(4))
    hook.remove()
    assert seen[2:] == [4, 4, 4, 4]  # the first two are the probe; 1 + 3 + 5 + 7 tokens
    assert all(torch.equal(one.ids_TK, other.ids_TK) for one, other in zip(whole, again, strict=True))


@pytest.mark.parametrize("proposal", [1.0, 0.6])
def test_drawn_teachers_are_unbiased(proposal: float) -> None:
    """Mean loss and gradient over many draws are those of the dense teacher, within 5 standard errors in theory; a cut one's are not."""
    g = torch.Generator().manual_seed(0)
    logits_V, seeds = 2.5 * torch.randn(40, generator=g, dtype=torch.float64), 4000
    how = SampledStore(draws=8, proposal=proposal)
    ids_TN, ratio_TN = draw(logits_V.expand(seeds, -1).float(), how, torch.rand(seeds, how.draws, generator=g, dtype=torch.float64))
    weights_TV = torch.zeros(seeds, 40, dtype=torch.float64).scatter_add_(1, ids_TN, ratio_TN.double() / how.draws)
    kept = weights_TV.topk(how.draws, 1)
    student_TV = torch.randn(40, generator=g, dtype=torch.float64).expand(seeds, -1).clone().requires_grad_()
    out = sampled_ce(Plain(student_TV), kept.indices, kept.values, torch.ones(seeds, dtype=torch.bool))
    (grad_TV,) = torch.autograd.grad(out.total, student_TV)
    p_V, q_V, from_V = logits_V.softmax(0), student_TV[0].detach().softmax(0), logits_V.mul(proposal).softmax(0)
    count = how.draws * seeds
    error_V = ((p_V.square() / from_V - p_V.square()) / count).sqrt() + p_V / from_V / count  # rare ids come in whole draws
    error_of_sum = (((p_V.square() / from_V).sum() - 1).clamp(min=0) / count).sqrt()
    allowed_V = 5 * (error_V + q_V * error_of_sum) + 1e-6
    assert ((grad_TV.mean(0) - (q_V - p_V)).abs() <= allowed_V).all()
    cross_entropy = -(p_V * q_V.log()).sum()
    variance = (p_V.square() / from_V * q_V.log().square()).sum() - cross_entropy.square()
    assert (out.total / seeds - cross_entropy).abs() <= 5 * (variance / count).sqrt()
    cut = p_V.topk(how.draws)
    cut_V = torch.zeros_like(p_V).scatter(0, cut.indices, cut.values / cut.values.sum())
    assert ((cut_V - p_V).abs() > allowed_V).any()


def test_batches_are_bounded_in_rows_and_positions() -> None:
    part = TEACHERS.get("hf_local")
    config = {"model": LLM, "fields": ["transcript"], "dtype": "float32"}
    prompt = Prompt("{{ audio }} {{ question }}", load_tokenizer(LLM))
    cut = part(part.Config.model_validate({**config, "batch_size": 3, "batch_tokens": 100}), prompt)
    assert isinstance(cut, HfLocalTeacher)
    assert list(cut._batches([4, 0, 1, 2, 3, 5], [10, 10, 60, 50, 10, 200])) == [[4, 0, 1], [2], [3], [5]]
    whole = part(part.Config.model_validate({**config, "max_new_tokens": 8}), prompt)
    asked = [Request(f"c{i}", "open-0", "What?", {"transcript": "one " * (1 + i)}) for i in range(7)]
    few = part(part.Config.model_validate({**config, "max_new_tokens": 8, "batch_tokens": 60}), prompt)
    assert [a.tokens for a in few.answer(asked)] == [a.tokens for a in whole.answer(asked)]


def test_a_teacher_with_another_tokenizer_is_refused() -> None:
    part = TEACHERS.get("hf_local")
    tokenizer = load_tokenizer(LLM)
    tokenizer.add_tokens(["<another>"])
    prompt = Prompt("{{ audio }} {{ question }}", tokenizer)
    with pytest.raises(InputError, match="has another tokenizer than the student"):
        part(part.Config.model_validate({"model": LLM, "fields": [], "dtype": "float32"}), prompt)


def test_what_the_model_does_not_have_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match=r"states 0 to 4 .* asked for \[5\]"):
        Scorer(model, SignalsConfig(hidden=HiddenStore(layers=[5])))
    with pytest.raises(InputError, match="k must be at most the teacher's 1545 ids, is 1546"):
        Scorer(model, SignalsConfig(topk=TopKStore(k=V + 1)))
