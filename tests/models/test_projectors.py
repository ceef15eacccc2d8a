"""Every projector of the table: lengths, trailing frames, neighbours, seeds, module calls, state; and each one's formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechkd.core.config import build
from speechkd.core.errors import InputError
from speechkd.core.seeds import torch_seed
from speechkd.models.encoder import LayerMix
from speechkd.models.projectors import PROJECTORS, Hint

SMALL: dict[str, dict[str, Any]] = {
    "gated_mlp": {"stack": 4, "hidden": 8},
    "linear": {"pool": 4},
    "mlp_stack": {"stack": 4, "hidden": 8},
    "qformer": {"queries": 3, "layers": 2, "heads": 2},
    "query_bank": {"queries": 3, "layers": 2, "heads": 2, "languages": ["en", "de"], "gate_hidden": 4},
    "ultravox": {"stack": 4, "hidden": 8},
    "windowed_qformer": {"window": 4, "queries": 2, "layers": 1, "heads": 2, "width": 8},
}
POSITIONS = {
    "gated_mlp": (1, 1, 2, 8),
    "linear": (1, 1, 2, 8),
    "mlp_stack": (1, 1, 2, 8),
    "ultravox": (1, 1, 2, 8),
    "windowed_qformer": (2, 2, 4, 16),
}
FRAMES = (1, 4, 7, 30)
every_kind = pytest.mark.parametrize("kind", list(PROJECTORS))


def make(kind: str, seed: int = 0, width_in: int = 6, width_out: int = 5, **keys: Any) -> Any:
    part = PROJECTORS.get(kind)
    with torch_seed(seed, "test"):
        return part(part.Config.model_validate({"kind": kind, **SMALL[kind], **keys}), width_in, width_out)


def project(projector: Any, states_BFD: Tensor, read_A: Tensor | None = None) -> Tensor:
    """Positions alone, from a projector with or without a gate."""
    if not projector.Config.GATED:
        return projector(states_BFD, read_A)  # type: ignore[no-any-return]
    return projector(states_BFD, Hint(language_B=None, progress=1.0), read_A).states_BQE  # type: ignore[no-any-return]


def states(B: int, F: int, seed: int = 1) -> Tensor:
    return torch.randn(B, F, 6, generator=torch.Generator().manual_seed(seed))


def test_every_projector_is_swept() -> None:
    assert set(SMALL) == set(PROJECTORS)


@every_kind
@pytest.mark.parametrize("index", range(len(FRAMES)))
def test_lengths(kind: str, index: int) -> None:
    projector, frames = make(kind), FRAMES[index]
    expected = POSITIONS.get(kind, (3,) * len(FRAMES))[index]
    assert projector.positions(frames) == expected
    assert project(projector, states(2, frames)).shape == (2, expected, 5)


@every_kind
@pytest.mark.parametrize("frames", [1, 5, 6, 7, 8])
def test_the_last_frame_is_never_dropped(kind: str, frames: int) -> None:
    projector, before = make(kind), states(1, frames)
    after = before.clone()
    after[:, -1] += torch.randn(6, generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(project(projector, before)[:, -1], project(projector, after)[:, -1])


@pytest.mark.parametrize("kind", list(POSITIONS))
def test_what_is_padded_is_as_if_it_were_not_there(kind: str) -> None:
    """7 frames of groups of 4: the first group does not see the second, and the second not what memory held behind it."""
    projector, long = make(kind), states(1, 8)
    whole, cut = project(projector, long), project(projector, long[:, :7])
    first = whole.shape[1] // 2
    torch.testing.assert_close(whole[:, :first], cut[:, :first])
    assert not torch.allclose(whole[:, first:], cut[:, first:])


@every_kind
def test_clips_do_not_see_their_neighbours(kind: str) -> None:
    projector, batch = make(kind), states(3, 7)
    together = project(projector, batch)
    for index in range(3):
        torch.testing.assert_close(together[index : index + 1], project(projector, batch[index : index + 1]))
    torch.testing.assert_close(project(projector, batch.flip(0)), together.flip(0))


@every_kind
def test_state_round_trip_and_seeds(kind: str) -> None:
    one, same, other = make(kind), make(kind), make(kind, seed=1)
    for (name, a), (_, b) in zip(one.named_parameters(), same.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    out = project(one, states(2, 7))
    assert not torch.allclose(project(other, states(2, 7)), out)
    other.load_state_dict(one.state_dict())
    assert torch.equal(project(other, states(2, 7)), out)


@every_kind
def test_every_parameter_learns(kind: str) -> None:
    projector, batch = make(kind), states(2, 7).requires_grad_()
    project(projector, batch).square().sum().backward()
    dead = {name for name, p in projector.named_parameters() if p.grad is None or not p.grad.any()}
    assert dead <= {"gate.score.bias"}, "a softmax over frames cancels this one: its gradient is 0 but for rounding"
    assert batch.grad is not None and batch.grad[:, -1].any()


@every_kind
def test_module_calls_are_the_same_whatever_the_batch(kind: str) -> None:
    """ZeRO-3 gathers module by module on all ranks together: one clip, many, a dummy of zeros, forced or not, all call alike."""
    projector = make(kind)
    calls: list[str] = []
    names = {module: name for name, module in projector.named_modules()}
    for module in projector.modules():
        module.register_forward_pre_hook(lambda m, _: calls.append(names[m]))
    seen = set()
    for batch in (states(1, 7), states(4, 8), torch.zeros(1, 7, 6)):
        hints: list[tuple[Hint, ...]] = [()]
        if projector.Config.GATED:
            known, unknown = torch.zeros(len(batch), dtype=torch.long), torch.full((len(batch),), -1)
            hints = [(Hint(language_B=x, progress=p),) for x in (None, known, unknown) for p in (0.0, 0.4, 1.0)]
        for hint in hints:
            for read_A in (None, read_positions(projector, (7,), batch.shape[1]), torch.zeros(0, dtype=torch.long)):
                calls.clear()
                projector(batch, *hint, read_A)
                seen.add(tuple(calls))
    assert len(seen) == 1 and "" in next(iter(seen))


def read_positions(projector: Any, frames: tuple[int, ...], window: int) -> Tensor:
    """As the collator says it: the positions of each clip's own frames, flat in [B, Q]."""
    Q = projector.positions(window)
    return torch.cat([torch.arange(projector.positions(n)) + b * Q for b, n in enumerate(frames)])


@every_kind
@pytest.mark.parametrize("window", [8, 10])
@pytest.mark.parametrize("frozen", [False, True])
def test_positions_that_nobody_reads_are_left_out_and_nothing_else_changes(kind: str, window: int, frozen: bool) -> None:
    projector = make(kind).double()
    for param in projector.parameters():  # norms start at 1 and 0, where a wrong fold would not show
        param.data += 0.3 * torch.randn(param.shape, generator=torch.Generator().manual_seed(3))
    read_A, found = read_positions(projector, (window, 3, 5), window), []
    for given in (None, read_A):
        batch = states(3, window).double().requires_grad_(not frozen)
        out = project(projector, batch, given).flatten(0, 1)
        weigh = torch.linspace(-1, 1, read_A.numel() * 5, dtype=torch.float64).view(-1, 5)
        projector.zero_grad()
        (out[read_A] * weigh).sum().backward()
        grads = {name: p.grad for name, p in projector.named_parameters() if p.grad is not None}
        found.append({"out": out[read_A].detach(), **grads} | ({} if batch.grad is None else {"states": batch.grad}))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", [kind for kind in PROJECTORS if PROJECTORS.get(kind).Config.SUMS_LAYERS])
@pytest.mark.parametrize("window", [8, 10])
def test_layers_that_the_projector_sums_are_the_projection_of_their_sum(kind: str, window: int) -> None:
    """Where it reads; every gradient too, the mix's among them."""
    projector, mix, found = make(kind).double(), LayerMix(3, normalise=True).double(), []
    layers, read_A = [states(3, window, seed).double() for seed in (1, 2, 3)], read_positions(projector, (window, 3, 5), window)
    for apart in (False, True):
        projector.zero_grad(), mix.zero_grad()
        out = project(projector, mix(layers, apart), read_A)
        (out * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)).sum().backward()
        found.append([out.detach(), mix.logits_L.grad, *(p.grad for p in projector.parameters())])
    for together, apart_too in zip(*found, strict=True):
        assert together is not None and together.any()
        torch.testing.assert_close(apart_too, together, rtol=1e-9, atol=1e-11)


@every_kind
def test_a_rank_without_audio_gives_every_weight_a_zero_gradient(kind: str) -> None:
    projector = make(kind)
    for frozen in (True, False):
        projector.zero_grad()
        out = project(projector, states(1, 7).requires_grad_(not frozen), torch.zeros(0, dtype=torch.long))
        assert out.shape == (1, projector.positions(7), 5)
        (out.sum() * 0.0).backward()
        missing = {name for name, p in projector.named_parameters() if p.grad is None or p.grad.any()}
        assert not {name for name in missing if not name.startswith("gate.")}, "a gate learns from its own loss"


@every_kind
def test_half_precision_and_wider_states(kind: str) -> None:
    """States come in the encoder's dtype, weights may be another: the projector computes in its own."""
    projector = make(kind)
    exact = project(projector, states(2, 7).bfloat16().float())
    assert torch.equal(project(projector, states(2, 7).bfloat16()), exact)
    half = project(projector.bfloat16(), states(2, 7).bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.05 * exact.abs().max() + 0.02


@every_kind
def test_runs_without_memory_and_without_waiting(kind: str) -> None:
    with torch.device("meta"):
        projector = make(kind)
        out = project(projector, torch.zeros(2, 7, 6))
    assert out.is_meta and out.shape == (2, projector.positions(7), 5)


def test_mlp_stack_equals_the_paper_formula_and_keeps_the_last_frames() -> None:
    """Linear(SiLU(Linear(stacked))) by hand; 7 frames of stack 4 are two positions, the second filled up with zeros."""
    projector, frames = make("mlp_stack"), states(1, 7)
    padded = torch.cat([frames, torch.zeros(1, 1, 6)], 1).reshape(2, 24)
    by_hand = nn.functional.silu(padded @ projector.in_weight.T + projector.in_bias) @ projector.out_weight.T + projector.out_bias
    torch.testing.assert_close(projector(frames)[0], by_hand)


def test_mlp_stack_is_ultravoxs_projector() -> None:
    """RMSNorm of the stack, Linear, SwiGLU (the second half gates), Linear, RMSNorm."""
    projector, frames = make("mlp_stack", norm="rms", gated=True, post_norm="rms"), states(1, 8)
    assert {name: tuple(p.shape) for name, p in projector.named_parameters()} == {
        "norm_weight": (24,), "in_weight": (16, 24), "in_bias": (16,), "out_weight": (5, 8), "out_bias": (5,), "post_weight": (5,),
    }  # fmt: skip
    for param in projector.parameters():
        param.data += 0.3 * torch.randn(param.shape, generator=torch.Generator().manual_seed(3))
    stacked = nn.functional.rms_norm(frames.view(2, 24), (24,), projector.norm_weight, 1e-5)
    up, gate = (stacked @ projector.in_weight.T + projector.in_bias).chunk(2, 1)
    out = (up * nn.functional.silu(gate)) @ projector.out_weight.T + projector.out_bias
    torch.testing.assert_close(projector(frames)[0], nn.functional.rms_norm(out, (5,), projector.post_weight, 1e-5))
    with pytest.raises(InputError, match="norm"):
        build(projector.Config, {"kind": "mlp_stack", "norm": "batch"}, "recipe")


@pytest.mark.parametrize("norm", ["mid", "post"])
def test_ultravox_equals_the_released_form(norm: str) -> None:
    projector, frames = make("ultravox", norm=norm), states(1, 7)
    assert projector.ln_pre.unique().tolist() == pytest.approx([0.4])
    for param in projector.parameters():
        param.data += 0.3 * torch.randn(param.shape, generator=torch.Generator().manual_seed(3))
    named = projector.published()
    assert set(named) == {"ln_pre.weight", "linear_1.weight", "linear_2.weight", f"ln_{norm}.weight"}

    def rms(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * named[f"{name}.weight"]

    padded = torch.cat([frames, torch.zeros(1, 1, 6)], 1).reshape(2, 24)
    up, gate = (rms(padded, "ln_pre") @ named["linear_1.weight"].T).chunk(2, 1)
    mid = up * nn.functional.silu(gate)
    mid = rms(mid, "ln_mid") if norm == "mid" else mid
    out = mid @ named["linear_2.weight"].T
    torch.testing.assert_close(projector(frames)[0], out if norm == "mid" else rms(out, "ln_post"))


def test_gated_mlp_equals_the_released_form() -> None:
    projector, frames = make("gated_mlp"), states(1, 7)
    with torch.no_grad():
        projector.norm.weight.uniform_(0.5, 2.0)
        projector.norm.bias.normal_()
    normed = nn.functional.layer_norm(frames, (6,), projector.norm.weight, projector.norm.bias)
    padded = torch.cat([normed, torch.zeros(1, 1, 6)], 1).reshape(2, 24)

    def linear(x: Tensor, layer: nn.Linear) -> Tensor:
        return x @ layer.weight.T + layer.bias

    z = nn.functional.silu(linear(padded, projector.linear_in))
    gated = nn.functional.silu(linear(z, projector.gate)) * linear(z, projector.pool)
    torch.testing.assert_close(projector(frames)[0], linear(gated, projector.linear_out))


def test_gated_mlp_has_meralions_size() -> None:
    with torch.device("meta"):
        part = PROJECTORS.get("gated_mlp")
        sizes = {tuple(p.shape) for p in part(part.Config(), 1280, 3584).parameters()}  # type: ignore[attr-defined]
    assert {(6400, 19200), (6400, 6400), (3584, 6400), (1280,)} <= sizes


def test_linear_is_qwen2_audios_pooling_and_projection() -> None:
    projector, frames = make("linear", pool=2), states(2, 8)
    pooled = nn.AvgPool1d(2, stride=2)(frames.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(projector(frames), projector.linear(pooled))
    torch.testing.assert_close(projector(frames[:, :7])[:, -1], projector.linear(frames[:, 6]))
    assert [name for name, part in projector.named_modules() if isinstance(part, nn.Linear)] == ["linear"]


def test_windows_are_read_alone_and_in_order() -> None:
    projector, frames = make("windowed_qformer"), states(1, 12)
    out = projector(frames)
    for window in range(3):
        torch.testing.assert_close(out[:, 2 * window : 2 * window + 2], projector(frames[:, 4 * window : 4 * window + 4]))


def test_salmonns_window_keeps_the_rest_as_a_window_of_its_own() -> None:
    assert make("windowed_qformer", window=17, queries=1).positions(1500) == 89


@pytest.mark.parametrize("kind", ["qformer", "query_bank"])
def test_causal_queries_do_not_see_later_ones(kind: str) -> None:
    for causal in (True, False):
        projector = make(kind, causal=causal)
        before = project(projector, states(1, 7))
        with torch.no_grad():
            projector.decoder.embed_positions[-1] += torch.randn(6, generator=torch.Generator().manual_seed(5))
        after = project(projector, states(1, 7))
        assert torch.equal(before[:, :-1], after[:, :-1]) == causal
        assert not torch.allclose(before[:, -1], after[:, -1])


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(InputError, match="width 6 cannot have 4 heads"):
        make("qformer", heads=4)


def test_languages_stand_once() -> None:
    config = PROJECTORS.get("query_bank").Config
    with pytest.raises(InputError, match="`en` stands more often"):
        build(config, {"kind": "query_bank", "languages": ["en", "de", "en"]}, "recipe")
    with pytest.raises(InputError, match="languages"):
        build(config, {"kind": "query_bank", "languages": ["en"]}, "recipe")
