"""Language gates: encoder states to logits over K languages (arXiv 2603.07025), and what is chosen by them.

The paper compares a convolutional LID-style network with attention pooling and an MLP; both pass 94.9 % accuracy. Layer sizes are not
given: all of them here are reconstructed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, one_hot, silu


class AttentionGate(nn.Module):
    """Attention pooling and an MLP: sum_f softmax(u . norm(h_f))_f norm(h_f), then Linear, SiLU, Linear."""

    def __init__(self, width_in: int, hidden: int, languages: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width_in)
        self.score = nn.Linear(width_in, 1)
        self.inner = nn.Linear(width_in, hidden)
        self.outer = nn.Linear(hidden, languages)

    def forward(self, states_BFD: Tensor) -> Tensor:
        """[B, F, D] -> logits [B, K]."""
        states_BFD = self.norm(states_BFD.to(self.norm.weight.dtype))
        weights_BF1 = torch.softmax(self.score(states_BFD).float(), dim=1).to(states_BFD.dtype)
        out: Tensor = self.outer(silu(self.inner((weights_BF1 * states_BFD).sum(1))))
        return out


class ConvGate(nn.Module):
    """Convolutions over time, mean and standard deviation, Linear: an x-vector-like LID network (Snyder et al. 2018), small."""

    def __init__(self, width_in: int, hidden: int, languages: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width_in)
        self.first = nn.Conv1d(width_in, hidden, kernel_size=5, stride=2, padding=2)
        self.second = nn.Conv1d(hidden, hidden, kernel_size=3, padding=2, dilation=2)
        self.inner = nn.Linear(2 * hidden, hidden)
        self.outer = nn.Linear(hidden, languages)

    def forward(self, states_BFD: Tensor) -> Tensor:
        """[B, F, D] -> logits [B, K]."""
        states_BDF = self.norm(states_BFD.to(self.norm.weight.dtype)).transpose(1, 2)
        features_BHF = gelu(self.second(gelu(self.first(states_BDF))))
        wide_BHF = features_BHF.float() if features_BHF.dtype != torch.float64 else features_BHF
        mean_BH = wide_BHF.mean(2)
        spread_BH = ((wide_BHF - mean_BH.unsqueeze(2)).square().mean(2) + 1e-6).sqrt()
        out: Tensor = self.outer(silu(self.inner(torch.cat([mean_BH, spread_BH], 1).to(states_BDF.dtype))))
        return out


def soft_choice(gate_BK: Tensor) -> Tensor:
    """pi = softmax(g), wide (temperature 1 is reconstructed)."""
    return torch.softmax(gate_BK if gate_BK.dtype == torch.float64 else gate_BK.float(), dim=1)


def hard_choice(gate_BK: Tensor) -> Tensor:
    """onehot(argmax g) + pi - stopgrad(pi): exactly one-hot forwards, the soft choice's gradient backwards (straight-through)."""
    pi_BK = soft_choice(gate_BK)
    # in this order: (onehot + pi) - pi would round
    return one_hot(gate_BK.argmax(1), gate_BK.shape[1]).to(pi_BK.dtype) + (pi_BK - pi_BK.detach())


def forcing_probability(progress: float, share: float = 0.5) -> float:
    """p_tf(s) = (1 + cos(pi min(1, s / (share S)))) / 2: from 1 to 0 on a cosine over the first `share` of the steps; 0 for share 0.

    The paper says "cosine over the first 50 % of steps"; this exact form is reconstructed. `progress` = s / S.
    """
    if progress >= share:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * max(0.0, progress) / share))


def forced_choice(choice_BK: Tensor, language_B: Tensor, probability: float) -> Tensor:
    """The true language's one-hot in place of the gate's choice, for each clip with `probability`, where the language is known (>= 0).

    Drawn for each sample alone (reconstructed), from torch's generator, which the loop seeds for every micro-batch. The same draw is made
    at any probability.
    """
    drawn_B = torch.rand(language_B.shape, device=language_B.device) < probability
    true_BK = one_hot(language_B.clamp(min=0), choice_BK.shape[1]).to(choice_BK.dtype)
    return torch.where((drawn_B & (language_B >= 0)).unsqueeze(1), true_BK, choice_BK)
