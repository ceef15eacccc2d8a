"""Computes teacher signals of given responses by teacher forcing, without holding [T, V] logits in memory.

A batch is right-padded prompts and responses. The transformer blocks run once. Then only the positions that predict a response token go
through the LM head, a chunk of rows at a time (`kernels.chunks.rows_per_chunk`), and only the stored signals of each chunk are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from speechkd.core.errors import InputError
from speechkd.core.seeds import derive
from speechkd.data.columns.signals import AttentionStore, HiddenStore, SampledStore, SignalsConfig, encode_sampled, encode_topk
from speechkd.kernels.chunks import rows_per_chunk
from speechkd.kernels.linear_topk_kl.teacher import teacher_topk
from speechkd.kernels.logits import soft_cap

ATTENTION = -1
"""Key of the last block's attention among the captured tensors"""
EncodedSignals = dict[str, Tensor]
"""Signal name -> encoded tensor, for one example"""


class ScoredResponse(NamedTuple):
    """One response to score."""

    prompt: list[int]
    response: list[int]
    name: str
    """seeds the example's random draws, so that they do not depend on its batch"""
    audio_QE: Tensor | None = None
    """embeddings at the audio positions, for speech LLMs"""
    at: int = 0
    """index of the first audio position in `prompt`; ids at audio positions are ignored"""


LoraScope = Callable[[Tensor], AbstractContextManager[None]]
"""Audio mask, boolean [B, S] -> context for a forward pass of that batch (switches LoRA at audio positions)"""


def no_lora_scope(audio_BS: Tensor) -> AbstractContextManager[None]:
    """For models without LoRA: does nothing."""
    return nullcontext()


def embedded(model: Any, ids_BS: Tensor, batch: Sequence[ScoredResponse], starts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Input embeddings [B, S, E] of rows whose prompts begin at `starts`, with audio filled in; and the audio mask, boolean [B, S]."""
    embeds_BSE: Tensor = model.get_input_embeddings()(ids_BS)
    audio_BS = torch.zeros(ids_BS.shape, dtype=torch.bool, device=embeds_BSE.device)
    for row, (item, start) in enumerate(zip(batch, starts, strict=True)):
        if item.audio_QE is not None:
            span = slice(start + item.at, start + item.at + len(item.audio_QE))
            embeds_BSE[row, span] = item.audio_QE.to(embeds_BSE)
            audio_BS[row, span] = True
    return embeds_BSE, audio_BS


class Scorer:
    """Computes the signals of a transformers causal LM on given responses."""

    def __init__(self, model: Any, signals: SignalsConfig, lora_scope: LoraScope = no_lora_scope) -> None:
        """Raises InputError for layers that the model lacks, and if its logits are not LM head times last hidden states."""
        self.model, self.signals, self._lora_scope = model.eval(), signals, lora_scope
        if signals.attention is not None:
            model.set_attn_implementation("eager")  # other implementations return no attention weights
        hf_config = model.config.get_text_config()
        self.vocabulary: int = hf_config.vocab_size
        self._softcap: float | None = getattr(hf_config, "final_logit_softcapping", None)
        if signals.hidden is not None and signals.hidden.layers[-1] > hf_config.num_hidden_layers:
            layers, last = signals.hidden.layers, hf_config.num_hidden_layers
            raise InputError(f"the teacher has states 0 to {last} (0: embeddings), asked for {layers} (signals.hidden.layers)")
        if signals.topk is not None and signals.topk.k > self.vocabulary:
            raise InputError(f"k must be at most the teacher's {self.vocabulary} ids, is {signals.topk.k} (signals.topk.k)")
        self._probe()

    @torch.inference_mode()
    def _probe(self) -> None:
        """Raises InputError for architectures that scale their logits in other ways: a wrong distribution must not be stored."""
        ids_BS = torch.arange(4, device=self.model.device)[None] % self.vocabulary
        model_SV = self.model(input_ids=ids_BS, use_cache=False).logits[0].float()
        head_SV = self._logits(self._blocks({"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)}, {})[0])
        if (model_SV.to(head_SV.device) - head_SV).abs().max() > 0.02 * model_SV.abs().max().to(head_SV.device):
            raise InputError(
                f"logits of a {type(self.model).__name__} are not its LM head on its last hidden states: it cannot be "
                "scored; leave `signals` out, or name another model (teachers: model)"
            )

    @torch.inference_mode()
    def score(self, batch: Sequence[ScoredResponse]) -> list[EncodedSignals]:
        """The signals of each response, in order."""
        rows, longest = [len(item.response) for item in batch], max(len(item.prompt) + len(item.response) for item in batch)
        ids = np.zeros((len(batch), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        predict: list[np.ndarray] = []
        for index, item in enumerate(batch):
            first, end = len(item.prompt), len(item.prompt) + len(item.response)
            ids[index, :end] = [*item.prompt, *item.response]
            mask[index, :end] = 1
            predict.append(np.arange(first, end) - 1 + index * longest)  # the position before a token predicts it
        device = self.model.device
        kept: dict[int, Tensor] = {}
        ids_BS, mask_BS = torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
        if all(item.audio_QE is None for item in batch):
            hidden_BSE = self._blocks({"input_ids": ids_BS, "attention_mask": mask_BS}, kept)
        else:
            embeds_BSE, audio_BS = embedded(self.model, ids_BS, batch, [0] * len(batch))
            with self._lora_scope(audio_BS):
                hidden_BSE = self._blocks({"inputs_embeds": embeds_BSE, "attention_mask": mask_BS}, kept)
        predict_T = torch.from_numpy(np.concatenate(predict))
        out: dict[str, Sequence[Tensor]] = {}
        if self.signals.attention is not None:
            out["attention"] = _attention(self.signals.attention, kept[ATTENTION], batch)
        if self.signals.hidden is not None:
            out["hidden"] = _hidden(self.signals.hidden, kept, predict_T).split(rows)
        if self.signals.topk is not None or self.signals.sampled is not None:
            out |= self._distributions(hidden_BSE.flatten(0, 1)[predict_T.to(hidden_BSE.device)], batch, rows)
        return [{name: parts[index].clone() for name, parts in out.items()} for index in range(len(batch))]

    def _blocks(self, inputs: dict[str, Tensor], kept: dict[int, Tensor]) -> Tensor:
        """Last hidden states [B, S, E]; fills `kept` with the states of the chosen layers, and the last attention if wanted."""
        chosen = self.signals.hidden.layers if self.signals.hidden is not None else []
        with _capture(self.model, chosen, self.signals.attention is not None, kept):
            last_BSE: Tensor = _decoder(self.model)(**inputs, use_cache=False).last_hidden_state
        if self.model.config.get_text_config().num_hidden_layers in chosen:
            kept[chosen[-1]] = last_BSE
        return last_BSE

    def _logits(self, hidden_CE: Tensor) -> Tensor:
        """float32 logits [C, V], with the model's soft cap."""
        return soft_cap(self.model.get_output_embeddings()(hidden_CE).float(), self._softcap)

    def _distributions(self, hidden_TE: Tensor, batch: Sequence[ScoredResponse], rows: Sequence[int]) -> dict[str, Sequence[Tensor]]:
        topk, sampled = self.signals.topk, self.signals.sampled
        uniform_TN = _uniform(sampled, batch) if sampled is not None else None
        tops: list[tuple[Tensor, ...]] = []
        drawn: list[tuple[Tensor, ...]] = []
        step = rows_per_chunk(self.vocabulary, hidden_TE.device)
        for start in range(0, hidden_TE.shape[0], step):
            logits_CV = self._logits(hidden_TE[start : start + step])
            if sampled is not None and uniform_TN is not None:
                drawn.append(draw(logits_CV, sampled, uniform_TN[start : start + step]))
            if topk is not None:
                tops.append(teacher_topk(logits_CV, topk.k, topk.temperature))
        out: dict[str, Sequence[Tensor]] = {}
        if topk is not None:
            ids_TK, logp_TK, tail_T = (torch.cat(parts).cpu() for parts in zip(*tops, strict=True))
            out["topk"] = encode_topk(topk, ids_TK, logp_TK, tail_T, self.vocabulary).split(list(rows))
        if sampled is not None:
            ids_TN, weights_TN = (torch.cat(parts).cpu().split(list(rows)) for parts in zip(*drawn, strict=True))
            out["sampled"] = [encode_sampled(sampled, i, w, self.vocabulary) for i, w in zip(ids_TN, weights_TN, strict=True)]
        return out


def draw(logits_CV: Tensor, store: SampledStore, uniform_CN: Tensor) -> tuple[Tensor, Tensor]:
    """Draw `draws` ids per row from q ~ p^proposal by inverting its CDF at `uniform_CN`; returns ids and float32 weights p / q."""
    logp_CV = torch.log_softmax(logits_CV / store.temperature, dim=1)
    logq_CV = logp_CV if store.proposal == 1.0 else torch.log_softmax(logp_CV * store.proposal, dim=1)
    edges_CV = logq_CV.exp().cumsum(dim=1, dtype=torch.float64)  # float32 would merge the edges of 10^5 unlikely ids
    at_CN = uniform_CN.to(edges_CV.device) * edges_CV[:, -1:]
    ids_CN = torch.searchsorted(edges_CV, at_CN, right=True).clamp(max=logits_CV.shape[1] - 1)
    return ids_CN, (logp_CV.gather(1, ids_CN) - logq_CV.gather(1, ids_CN)).exp()


def _uniform(store: SampledStore, batch: Sequence[ScoredResponse]) -> Tensor:
    """Uniform numbers, float64 [T, N] in [0, 1), seeded per example and independent of the batch."""
    parts = [
        np.random.Generator(np.random.Philox(key=derive(0, "draws", item.name))).random((len(item.response), store.draws)) for item in batch
    ]
    return torch.from_numpy(np.concatenate(parts))


def _hidden(store: HiddenStore, kept: dict[int, Tensor], predict_T: Tensor) -> Tensor:
    """Hidden states [T, L, E] on the CPU in the stored precision. Raises InputError if a state overflows float16."""
    parts = [kept[layer].flatten(0, 1)[predict_T.to(kept[layer].device)].to("cpu", getattr(torch, store.dtype)) for layer in store.layers]
    states_TLE = torch.stack(parts, dim=1)
    if not states_TLE.isfinite().all():
        raise InputError("a hidden state is too large for float16: use bfloat16 (signals.hidden.dtype)")
    return states_TLE


def _attention(store: AttentionStore, weights_BHSS: Tensor, batch: Sequence[ScoredResponse]) -> list[Tensor]:
    """[Q] of each example: how much its response attends to each audio position, mean over heads and response tokens (arXiv 2602.01547).

    Rows are the response tokens' own positions, as `teachers.live.audio_attention` has them.
    """
    out = []
    for row, item in enumerate(batch):
        first, end = len(item.prompt), len(item.prompt) + len(item.response)
        width = 0 if item.audio_QE is None else len(item.audio_QE)
        mean_Q = weights_BHSS[row, :, first:end, item.at : item.at + width].float().mean(dim=(0, 1))
        out.append(mean_Q.to("cpu", getattr(torch, store.dtype)))
    return out


@contextmanager
def _capture(model: nn.Module, layers: Sequence[int], attention: bool, kept: dict[int, Tensor]) -> Iterator[None]:
    """Hooks that capture, into `kept`, the input of the first block (0) and the outputs of the given layers, and no other states."""
    blocks = _blocks_of(model)
    with ExitStack() as stack:
        if attention:

            def attending(module: nn.Module, inputs: Any, output: Any) -> None:
                kept[ATTENTION] = output[1]

            last: Any = blocks[-1]
            stack.callback(last.self_attn.register_forward_hook(attending).remove)
        for layer in layers:

            def entering(module: nn.Module, inputs: Any) -> None:
                kept[0] = inputs[0]

            def leaving(module: nn.Module, inputs: Any, output: Any, layer: int = layer) -> None:
                kept[layer] = output[0] if isinstance(output, tuple) else output

            block = blocks[max(0, layer - 1)]
            hook = block.register_forward_hook(leaving) if layer else block.register_forward_pre_hook(entering)
            stack.callback(hook.remove)
        yield


def _decoder(model: Any) -> Any:
    """The language model without its LM head, also inside a speech LLM."""
    return getattr(model.base_model, "language_model", model.base_model)


def _blocks_of(model: Any) -> nn.ModuleList:
    """The decoder blocks: the module list whose length is the configured depth."""
    depth = model.config.get_text_config().num_hidden_layers
    found = [m for m in _decoder(model).modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    assert found, f"{type(model).__name__} has no list of {depth} blocks"
    return found[0]
