"""The frozen language model: embeddings, hidden states, and a head that ZeRO-3 gathers exactly where it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


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
    """A frozen causal LM from transformers."""

    def __init__(self, causal_lm: Any) -> None:
        super().__init__()
        self.lm: Any = causal_lm.requires_grad_(False)
        self.head = Head(causal_lm.get_output_embeddings().weight)
        config = causal_lm.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.width: int = config.hidden_size
        self.vocab_size: int = config.vocab_size

    def train(self, mode: bool = True) -> LanguageModel:
        """Stays in evaluation mode: no dropout in a frozen model."""
        return super().train(False)

    def embed(self, ids_BS: Tensor) -> Tensor:
        """Token ids [B, S] -> input embeddings [B, S, D]."""
        out: Tensor = self.lm.get_input_embeddings()(ids_BS)
        return out

    def hidden(self, embeddings_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """Final hidden states (after the last norm) [B, S, D]; `mask_BS` is 1 on real positions, padding on the right."""
        positions_BS = (mask_BS.cumsum(1) - 1).clamp_min(0)
        out: Tensor = self.lm.base_model(
            inputs_embeds=embeddings_BSD, attention_mask=mask_BS, position_ids=positions_BS, use_cache=False
        ).last_hidden_state
        return out

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Logits [T, V] in float32, soft-capped as the model's own head does. For probes and decoding, not for training."""

        def project(hidden: Tensor, weight: Tensor) -> Tensor:
            logits = (hidden @ weight.t()).float()
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

        out: Tensor = self.head(hidden_TD, project)
        return out
