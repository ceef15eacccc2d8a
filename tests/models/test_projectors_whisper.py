"""A Q-Former that starts from a Whisper decoder is that decoder; what does not fit stays as it was made; what cannot fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.models.projectors import Hint
from speechkd.models.projectors.whisper_init import init_from_whisper, whisper_fit
from tests.engine.ranks import save_whisper
from tests.models.test_projectors import make

KEYS: dict[str, Any] = {"width_in": 36, "layers": 1, "heads": 4, "hidden": 50, "causal": True}


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_whisper(tmp_path_factory.mktemp("whisper")))


@pytest.mark.parametrize("kind", ["qformer", "query_bank", "windowed_qformer"])
def test_computes_what_whispers_decoder_computes(kind: str, whisper: str) -> None:
    from transformers import WhisperModel

    projector = make(kind, queries=5, width=None, init_from=whisper, **KEYS)
    fit = init_from_whisper(projector)
    assert fit is not None and len(fit.fitting) == fit.total and fit.misfit is None
    decoder = WhisperModel.from_pretrained(whisper).decoder.eval()
    queries, states = torch.randn(2, 5, 36), torch.randn(2, 11, 36)
    with torch.no_grad():
        theirs = decoder(inputs_embeds=queries, encoder_hidden_states=states).last_hidden_state
        torch.testing.assert_close(projector.decoder(queries, states), theirs, atol=1e-5, rtol=1e-5)


def test_the_projector_runs_from_there(whisper: str) -> None:
    bank = make("query_bank", queries=5, init_from=whisper, **KEYS)
    init_from_whisper(bank)
    assert bank(torch.randn(2, 11, 36), Hint(language_B=None, progress=1.0)).states_BQE.isfinite().all()


def test_what_does_not_fit_stays_as_it_was_made(whisper: str) -> None:
    """Another feed-forward width, more layers than Whisper has, more queries than it has positions: the rest is taken."""
    keys = {**KEYS, "hidden": 60, "layers": 2}
    started, fresh = make("qformer", queries=17, init_from=whisper, **keys), make("qformer", queries=17, **keys)
    fit = init_from_whisper(started)
    assert fit is not None and fit.misfit == "`embed_positions` of shape [17, 36]: the checkpoint has [16, 36]"
    for (name, a), (_, b) in zip(started.decoder.named_parameters(), fresh.decoder.named_parameters(), strict=True):
        taken = name in fit.fitting
        assert taken == (name.startswith("layers.0") and ".fc" not in name or name.startswith("layer_norm") or name == "layers.0.fc2.bias")
        assert torch.equal(a, b) != taken or (taken and "norm" in name or "bias" in name), name
    assert torch.equal(started.queries, fresh.queries) and torch.equal(started.projection.weight, fresh.projection.weight)


def test_fewer_queries_take_the_first_positions(whisper: str) -> None:
    projector = make("qformer", queries=3, init_from=whisper, **KEYS)
    fit = whisper_fit(projector.decoder, whisper)
    init_from_whisper(projector)
    from speechkd.core.tensors import read_tensor

    assert torch.equal(projector.decoder.embed_positions, read_tensor(fit.fitting["embed_positions"])[:3])


def test_lora_on_the_decoder_does_not_hide_it(whisper: str) -> None:
    from speechkd.models.lora import LoraConfig, Switch, add_lora

    plain, adapted = make("qformer", queries=5, init_from=whisper, **KEYS), make("qformer", queries=5, init_from=whisper, **KEYS)
    names = [name for name, _ in adapted.named_modules() if name.endswith(("q_proj", "fc1"))]
    add_lora(adapted, names, LoraConfig(r=2, targets=["q_proj", "fc1"]), Switch())
    fits = [init_from_whisper(projector) for projector in (plain, adapted)]
    assert fits[0] is not None and fits[1] is not None and fits[0].fitting.keys() == fits[1].fitting.keys() and fits[1].misfit is None
    states = torch.randn(2, 11, 36)
    with torch.no_grad():
        adapted.queries.copy_(plain.queries)
        torch.testing.assert_close(adapted.decoder(adapted.queries[None], states[:1]), plain.decoder(plain.queries[None], states[:1]))


def test_what_cannot_be_a_start_is_refused(whisper: str) -> None:
    with pytest.raises(InputError, match="has 4 heads, the projector 2"):
        init_from_whisper(make("qformer", init_from=whisper, **{**KEYS, "heads": 2}))
    with pytest.raises(InputError, match="nothing of the decoder .* fits"):
        init_from_whisper(make("qformer", init_from=whisper, **{**KEYS, "width_in": 8, "hidden": 13}))
    with pytest.raises(InputError, match="no Whisper decoder"):
        init_from_whisper(make("qformer", init_from=str(Path(__file__).parents[2] / "standins/llm"), **KEYS))
    assert init_from_whisper(make("qformer", **KEYS)) is None
    assert init_from_whisper(make("linear")) is None
