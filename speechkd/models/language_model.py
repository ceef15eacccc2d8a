"""The frozen language model: embeddings, hidden states of any layer, and an LM head that ZeRO-3 gathers only while it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from speechkd.models.lora import LoraConfig, Switch, add_lora, lora_layers


class Head(nn.Module):
    """The LM head as a module of its own, so that its weight is whole inside this forward and nowhere else.

    A loss that read `lm_head.weight` from outside would see an empty shard under ZeRO-3; here DeepSpeed's gather hook fires.
    """

    def __init__(self, weight_VD: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight_VD

    def forward(self, hidden_TD: Tensor, use: Callable[[Tensor, Tensor], Any]) -> Any:
        """`use(hidden_TD, weight_VD)` with the weight gathered; it must not keep the weight for backward."""
        return use(hidden_TD, self.weight)


class LanguageModel(nn.Module):
    """A causal LM from transformers, frozen but for LoRA."""

    def __init__(self, causal_lm: Any) -> None:
        super().__init__()
        self.lm: Any = causal_lm.requires_grad_(False)
        self.head = Head(causal_lm.get_output_embeddings().weight)
        hf_config = causal_lm.config.get_text_config()
        self.softcap: float | None = getattr(hf_config, "final_logit_softcapping", None)
        self.width: int = hf_config.hidden_size
        self.vocab_size: int = hf_config.vocab_size
        self.layers: int = hf_config.num_hidden_layers
        self.switch = Switch()

    def train(self, mode: bool = True) -> LanguageModel:
        """Stays in evaluation mode, LoRA's dropout apart: no dropout in a frozen model."""
        super().train(False)
        for layer in lora_layers(self).values():
            layer.train(mode)
        return self

    def add_lora(self, names: list[str], config: LoraConfig) -> None:
        """Put LoRA on layers of `lm`, by name. Heads and embeddings have none: a tied one would be two."""
        add_lora(self.lm, names, config, self.switch)

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, in order."""
        return list(self.lm.base_model.layers)

    def embed(self, ids_BS: Tensor) -> Tensor:
        """Token ids [B, S] -> input embeddings [B, S, D]."""
        out: Tensor = self.lm.get_input_embeddings()(ids_BS)
        return out

    def states(self, embeddings_BSD: Tensor, mask_BS: Tensor, every_layer: bool = False) -> tuple[Tensor, ...]:
        """Hidden states [B, S, D]: the final ones (after the last norm) alone, or of every layer.

        `mask_BS` is 1 on real positions, padding on the right. With `every_layer` 0 is the embeddings, i the output of block i, and the
        last is after the final norm, as transformers gives them.
        """
        positions_BS = (mask_BS.cumsum(1) - 1).clamp_min(0)
        out = self.lm.base_model(
            inputs_embeds=embeddings_BSD,
            attention_mask=mask_BS,
            position_ids=positions_BS,
            use_cache=False,
            output_hidden_states=every_layer,
        )
        return tuple(out.hidden_states) if every_layer else (out.last_hidden_state,)

    def final_norm(self, states_TD: Tensor) -> Tensor:
        """The model's own last norm, for reading inner layers through the head (logit lens)."""
        out: Tensor = self.lm.base_model.norm(states_TD)
        return out

    def last_attention(self) -> nn.Module:
        """The last block's self-attention."""
        last: Any = self.blocks()[-1]
        attention: nn.Module = last.self_attn
        return attention

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Logits [T, V] in float32, soft-capped as the model's own head does. For probes and decoding, not for training."""

        def project(hidden: Tensor, weight: Tensor) -> Tensor:
            logits = (hidden @ weight.t()).float()
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

        out: Tensor = self.head(hidden_TD, project)
        return out
