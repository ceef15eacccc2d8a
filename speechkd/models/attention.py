"""Which implementation of attention a language model runs: the best that architecture and device allow, or the one that is named."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch

from speechkd.core.errors import InputError

Attention = Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"]
FLASH_PACKAGE = "flash-attn"


class Picked(NamedTuple):
    """An implementation by its name in transformers, and why it was taken."""

    name: str
    why: str


def pick_attention(causal_lm: Any, wanted: Attention, device: torch.device | None = None) -> Picked:
    """What `student.attention` means for this model. `device`: where it will run; None: a GPU, if there is one here.

    Raises InputError for an implementation that the architecture or this machine does not have.
    """
    kind = (device or torch.device("cuda" if torch.cuda.is_available() else "cpu")).type
    can = {
        "sdpa": bool(causal_lm._supports_sdpa),
        "flash_attention_2": bool(causal_lm._supports_flash_attn),
        "flex_attention": bool(causal_lm._supports_flex_attn),
        "eager": True,
    }
    family = causal_lm.config.get_text_config().model_type
    if wanted != "auto":
        if not can[wanted]:
            allowed = ", ".join(["auto", *(name for name in can if can[name])])
            raise InputError(f"`{family}` has no `{wanted}` in transformers; allowed: {allowed} (student.attention)")
        if wanted == "flash_attention_2" and (missing := _no_flash(kind, causal_lm.dtype)):
            raise InputError(f"`flash_attention_2` {missing}; leave `student.attention` at auto (student.attention)")
        return Picked(wanted, "named in student.attention")
    if can["sdpa"]:
        return Picked("sdpa", "torch's fused attention, which the architecture allows")
    capped = f"`{family}` excludes SDPA (soft-capped scores)"
    if can["flash_attention_2"] and not _no_flash(kind, causal_lm.dtype):
        return Picked("flash_attention_2", capped)
    if can["flex_attention"] and kind == "cuda":
        return Picked("flex_attention", f"{capped}, and FlashAttention {_no_flash(kind, causal_lm.dtype)}")
    return Picked("eager", f"`{family}` excludes SDPA, and {'there is no GPU' if kind != 'cuda' else 'has nothing else that is fused'}")


def _no_flash(kind: str, dtype: torch.dtype) -> str:
    """Why FlashAttention cannot run here; empty where it can."""
    from transformers.utils import is_flash_attn_2_available

    if kind != "cuda":
        return "needs a GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"needs half precision, `student.dtype` is {str(dtype).removeprefix('torch.')}"
    return "" if is_flash_attn_2_available() else f"needs the package {FLASH_PACKAGE}"
