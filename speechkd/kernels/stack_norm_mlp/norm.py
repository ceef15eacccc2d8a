"""LayerNorm or RMSNorm of groups of values, as an op's part: weights that are handed over, not a module."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm


class Norm(NamedTuple):
    """LayerNorm over as many values as it has weights; without a bias RMSNorm."""

    weight_C: Tensor
    bias_C: Tensor | None
    eps: float = 1e-5

    @property
    def kind(self) -> Literal["layer", "rms"]:
        """Which of them."""
        return "rms" if self.bias_C is None else "layer"

    @property
    def width(self) -> int:
        """C: values that are normalised together."""
        return self.weight_C.shape[0]

    def of(self, x_XC: Tensor) -> Tensor:
        """x normalised, weighed and shifted; any leading dimensions."""
        if self.bias_C is None:
            return rms_norm(x_XC, (self.width,), self.weight_C, self.eps)
        return layer_norm(x_XC, (self.width,), self.weight_C, self.bias_C, self.eps)


def standardised(x_XC: Tensor, kind: str, eps: float) -> Tensor:
    """x^: normalised over the last dimension, neither weighed nor shifted."""
    width = (x_XC.shape[-1],)
    return rms_norm(x_XC, width, None, eps) if kind == "rms" else layer_norm(x_XC, width, None, None, eps)
