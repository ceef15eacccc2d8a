"""Real ranks for the engine's tests: worker.py under torchrun, and small models to load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def run(ranks: int, jobs: list[list[str]], forked: bool = True) -> list[Any]:
    """Run the jobs of worker.py, each [what, folder, arguments ...], one after another on the same ranks; what rank 0 answered to each.

    `forked=False`: one plain process. Fails with the workers' last lines.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    agent = ["-W", "ignore", "-m", "tests.forked", str(ranks)] if forked else ["-m"]
    command = [sys.executable, *agent, "tests.engine.worker", json.dumps(jobs)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-4000:]
    assert "FutureWarning" not in done.stderr and "[INFO]" not in done.stdout + done.stderr, "one line per collective hides what matters"
    answers = [Path(job[1]) / "answer.json" for job in jobs]
    return [json.loads(path.read_text()) if path.is_file() else None for path in answers]


def save_causal_lm(folder: Path, hidden: int = 40, layers: int = 2, vocabulary: int = 301, tied: bool = True, shard: str = "5GB") -> Path:
    """A Qwen2 with random weights, saved by transformers."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_whisper(folder: Path) -> Path:
    """A Whisper with random weights, saved by transformers."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(4)
    config = WhisperConfig(
        vocab_size=64,
        num_mel_bins=17,
        d_model=36,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=50,
        decoder_ffn_dim=50,
        max_source_positions=75,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    return folder
