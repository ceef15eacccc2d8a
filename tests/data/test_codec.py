"""Packed signals come back: ids exactly, log-probs within the stated error, draws and states as they were; wrong bytes are said."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from speechkd.core.errors import DataError
from speechkd.data.columns import codec
from speechkd.data.columns.signals import (
    AttentionStore,
    HiddenStore,
    SampledStore,
    SignalsConfig,
    TopKStore,
    decode,
    encode_sampled,
    encode_topk,
)
from speechkd.kernels.linear_topk_kl.teacher import teacher_topk
from speechkd.teachers import scoring
from tests.bench.signals import TURN, stored, teacher_like
from tests.data.codec_error import logp_error

QWEN = 151_936


@st.composite
def id_rows(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    vocabulary = draw(st.one_of(st.integers(1, 300), st.sampled_from([32_000, 65_536, 65_537, 131_072, QWEN, 262_144, 2**20 + 1])))
    k = draw(st.integers(1, min(vocabulary, 128)))
    rows = draw(st.integers(0, 4))
    edge = draw(st.sampled_from(["any", "low", "high"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pick = {
        "any": lambda: rng.choice(vocabulary, k, replace=False),
        "low": lambda: np.arange(k),
        "high": lambda: vocabulary - 1 - np.arange(k),
    }
    return np.sort(np.array([pick[edge]() for _ in range(rows)]).reshape(rows, k), axis=1), vocabulary


@given(id_rows())
@settings(max_examples=300, deadline=None)
def test_ids_come_back_exactly(case: tuple[np.ndarray, int]) -> None:
    ids_TK, vocabulary = case
    packed = codec.pack_id_rows(ids_TK, vocabulary)
    assert packed.shape == (len(ids_TK), codec.id_row_bytes(ids_TK.shape[1], vocabulary))
    assert np.array_equal(codec.unpack_id_rows(packed, ids_TK.shape[1], vocabulary), ids_TK)


@pytest.mark.parametrize(("k", "vocabulary"), [(64, QWEN), (32, QWEN), (128, 262_144), (64, 32_000)])
def test_a_row_is_shorter_than_ids_of_fixed_width(k: int, vocabulary: int) -> None:
    assert codec.id_row_bytes(k, vocabulary) < k * codec.id_bits(vocabulary) / 8
    assert codec.id_bits(QWEN) == 18


@given(st.lists(st.floats(-40, 0), min_size=1, max_size=64), st.sampled_from([8, 16, 32]))
@settings(max_examples=300, deadline=None)
def test_log_probs_are_within_the_stated_error(values: list[float], bits: int) -> None:
    logp_TK = np.array([values], dtype=np.float32)
    packed = codec.pack_logp_rows(logp_TK, bits)
    back_TK = codec.unpack_logp_rows(packed, logp_TK.shape[1], bits).astype(np.float64)
    assert packed.shape == (1, codec.logp_row_bytes(logp_TK.shape[1], bits))
    assert (np.abs(back_TK - logp_TK) <= logp_error(logp_TK, bits)).all()
    deep = logp_TK < -codec.DEEPEST
    assert bits == 32 or (back_TK[deep] <= -codec.DEEPEST * 0.999).all()
    assert logp_error(np.array([[-codec.DEEPEST]]), bits).max() <= {8: 0.1182, 16: 0.00047, 32: 0.0}[bits]


@given(st.integers(1, 24), st.lists(st.integers(0, 2**32), max_size=70))
@settings(max_examples=200, deadline=None)
def test_numbers_come_back(bits: int, values: list[int]) -> None:
    numbers = np.array([value % (1 << bits) for value in values], dtype=np.int64)
    packed = codec.pack_numbers(numbers, bits)
    assert len(packed) == -(-len(numbers) * bits // 8)
    assert np.array_equal(codec.unpack_numbers(packed, bits, len(numbers)), numbers)


def some_topk(T: int, k: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    logp = (3 * torch.randn(T, vocabulary, generator=torch.Generator().manual_seed(T + k))).log_softmax(1)
    top = logp.topk(k, 1)
    return top.indices, top.values, logp.scatter(1, top.indices, -torch.inf).logsumexp(1)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize(("T", "k", "vocabulary"), [(5, 8, 1545), (1, 64, 4000), (3, 20, 20)])
def test_topk_comes_back_sorted_by_id(bits: int, T: int, k: int, vocabulary: int) -> None:
    store = TopKStore(k=k, bits=bits)  # type: ignore[arg-type]
    ids_TK, logp_TK, tail_T = some_topk(T, k, vocabulary)
    packed = encode_topk(store, ids_TK, logp_TK, tail_T, vocabulary)
    assert packed.shape == (T, store.row_bytes(vocabulary)) and packed.dtype == torch.uint8
    out = decode(SignalsConfig(topk=store), {"topk"}, {"topk": packed}, T, vocabulary)
    sorted_TK, order_TK = ids_TK.sort(1)
    assert torch.equal(out.ids_TK.long(), sorted_TK)
    error_TK = torch.from_numpy(logp_error(logp_TK.gather(1, order_TK).numpy(), bits))
    assert ((out.logp_TK.double() - logp_TK.gather(1, order_TK)).abs() <= error_TK).all()
    if k == vocabulary:
        assert (out.tail_logp_T == -torch.inf).all()
    else:
        assert ((out.tail_logp_T - tail_T).abs() <= (0 if bits == 32 else 2**-11 * tail_T.abs() + 2**-24)).all()


@pytest.mark.parametrize("proposal", [1.0, 0.7])
@pytest.mark.parametrize("draws", [1, 12, 255])
def test_draws_come_back_as_different_ids_with_their_weights(draws: int, proposal: float) -> None:
    store = SampledStore(draws=draws, proposal=proposal)
    g = torch.Generator().manual_seed(draws)
    ids_TN = (torch.randn(6, draws, generator=g).abs() * 30).long() + QWEN - 200
    ratio_TN = torch.ones(6, draws) if proposal == 1.0 else torch.rand(6, 400, generator=g).gather(1, ids_TN - (QWEN - 200)) + 0.5
    packed = encode_sampled(store, ids_TN, ratio_TN, QWEN)
    out = decode(SignalsConfig(sampled=store), {"sampled"}, {"sampled": packed}, 6, QWEN)
    dense_TV = torch.zeros(6, QWEN).scatter_add_(1, ids_TN, ratio_TN / draws)
    back_TV = torch.zeros(6, QWEN).scatter_add_(1, out.sampled_ids_TN.long(), out.sampled_weights_TN)
    torch.testing.assert_close(back_TV, dense_TV, rtol=0 if proposal == 1.0 else 2**-10, atol=1e-6)
    different = [len(set(row)) for row in ids_TN.tolist()]
    assert out.sampled_ids_TN.shape == (6, max(different))
    assert abs(len(packed) - 6 * store.row_bytes(QWEN, sum(different) / 6)) < 2


def test_a_stored_distribution_stays_within_its_bytes() -> None:
    """Per response token at 151,936 ids, names and shapes counted: what `python -m tests.bench.signals` prints is bounded here."""
    g = torch.Generator().manual_seed(0)
    logits_TV = teacher_like(TURN, 2.0, g)
    topk = encode_topk(TopKStore(k=64), *teacher_topk(logits_TV.clone(), 64, 1.0), QWEN)
    assert stored(topk) <= 208

    def drawn(draws: int, logits_TV: Tensor) -> Tensor:
        uniform = torch.rand(TURN, draws, generator=g, dtype=torch.float64)
        how = SampledStore(draws=draws)
        return encode_sampled(how, *scoring.draw(logits_TV, how, uniform), QWEN)

    assert stored(drawn(50, logits_TV)) <= 40, "the recipe's 50 draws, from a teacher of 2 nats"
    assert drawn(14, torch.zeros(TURN, QWEN)).numel() / TURN <= 40, "14 draws, whatever the teacher: here all are different"


def test_states_come_back_and_must_be_what_is_declared() -> None:
    signals = SignalsConfig(hidden=HiddenStore(layers=[0, 3]))
    states = torch.randn(4, 2, 8).bfloat16()
    assert torch.equal(decode(signals, {"hidden"}, {"hidden": states}, 4, 9).hidden_TLE, states)
    for wrong in (states.float(), states[:3], states[:, :1]):
        with pytest.raises(DataError, match="`hidden` must be"):
            decode(signals, {"hidden"}, {"hidden": wrong}, 4, 9)
    with pytest.raises(DataError, match=r"holds signals \[\], must hold \['hidden'\]"):
        decode(signals, {"hidden"}, {}, 4, 9)
    with pytest.raises(ValueError, match="ascending"):
        HiddenStore(layers=[3, 1])


def test_attention_comes_back_and_must_be_one() -> None:
    signals, weights_Q = SignalsConfig(attention=AttentionStore()), torch.rand(19) / 19
    assert torch.equal(decode(signals, {"attention"}, {"attention": weights_Q}, 4, 9).attention_CQ[0], weights_Q)
    half = SignalsConfig(attention=AttentionStore(dtype="float16"))
    torch.testing.assert_close(
        decode(half, {"attention"}, {"attention": weights_Q.half()}, 4, 9).attention_CQ[0], weights_Q, atol=1e-4, rtol=1e-3
    )
    for wrong in (weights_Q.half(), weights_Q[None], -weights_Q, 2 + weights_Q, weights_Q * torch.nan):
        with pytest.raises(DataError, match="attention"):
            decode(signals, {"attention"}, {"attention": wrong}, 4, 9)


@given(st.binary(min_size=1, max_size=400), st.integers(0, 5), st.sampled_from(["topk", "sampled"]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_refused_or_are_a_valid_signal(data: bytes, tokens: int, name: str) -> None:
    signals = SignalsConfig(topk=TopKStore(k=4)) if name == "topk" else SignalsConfig(sampled=SampledStore(draws=6, proposal=0.5))
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if name == "topk":
        width = TopKStore(k=4).row_bytes(300)
        tensor = tensor[: len(tensor) // width * width].view(-1, width)
        tokens = len(tensor)
    try:
        out = decode(signals, {name}, {name: tensor}, tokens, 300)
    except DataError:
        return
    ids = out.ids_TK if name == "topk" else out.sampled_ids_TN
    assert ids.numel() == 0 or (0 <= ids.min() and ids.max() < 300)
    assert not any(values.isnan().any() for _, values in out.items())
