"""Bytes of stored signals beside plain int32 + fp16, batched answers beside one by one, and what scoring costs beyond the model.

    python -m tests.bench.signals [--rounds 3]

Times are processor seconds of one thread, so that other processes on the machine do not count; ways take turns, medians are printed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from speechkd.data.columns.signals import SampledStore, SignalsConfig, TopKStore, encode_sampled, encode_topk
from speechkd.kernels.linear_topk_kl.teacher import teacher_topk
from speechkd.models.exported import load_tokenizer
from speechkd.models.pretrained import quietly
from speechkd.models.prompt import Prompt
from speechkd.teachers import scoring
from speechkd.teachers.base import Answer, Request
from speechkd.teachers.hf_local import HfLocalConfig, HfLocalTeacher

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "standins/llm"
QWEN = 151_936
TURN, TURNS = 32, 8
"""Response tokens a turn, turns a clip"""


def teacher_like(rows: int, entropy: float, generator: torch.Generator) -> Tensor:
    """Logits [rows, QWEN] whose ranks fall off as a power, as a language model's do, at about the entropy asked for (nats)."""
    ranks = torch.arange(1, QWEN + 1, dtype=torch.float64).log()
    low, high = 0.8, 12.0
    for _ in range(40):
        slope = (low + high) / 2
        logp = torch.log_softmax(-slope * ranks, 0)
        low, high = (slope, high) if -(logp.exp() * logp).sum() > entropy else (low, slope)
    logits = torch.log_softmax(-slope * ranks, 0).float()
    return torch.stack([logits[torch.randperm(QWEN, generator=generator)] for _ in range(rows)])


def stored(encoded: Tensor) -> float:
    """Bytes a token in a file of TURNS turns: the tensors' names and shapes count."""
    return len(save({f"open-{turn}.signal": encoded.clone() for turn in range(TURNS)})) / (TURNS * TURN)


def sizes() -> None:
    """Bytes per response token."""
    g = torch.Generator().manual_seed(0)
    print(f"bytes per response token, V = {QWEN:,}; in brackets with names and shapes, {TURNS} turns of {TURN} tokens a clip")
    print(f"  plain top-64, int32 + fp16        {64 * 6:6.1f}")
    logits_TV = teacher_like(TURN, 2.0, g)
    for bits in (8, 16):
        store = TopKStore(k=64, bits=bits)  # type: ignore[arg-type]
        whole = encode_topk(store, *teacher_topk(logits_TV.clone(), 64, 1.0), QWEN)
        print(f"  top-64, log-probs of {bits:2d} bits        {store.row_bytes(QWEN):6.1f} ({stored(whole):.1f})")
    for draws, entropies in ((14, (3.0,)), (50, (0.5, 1.0, 1.5, 2.0, 3.0))):
        for entropy in entropies:
            drawn = SampledStore(draws=draws)
            uniform = torch.rand(TURN, draws, generator=g, dtype=torch.float64)
            ids_TN, ratio_TN = scoring.draw(teacher_like(TURN, entropy, g), drawn, uniform)
            encoded = encode_sampled(drawn, ids_TN, ratio_TN, QWEN)
            kinds = np.mean([len(set(row)) for row in ids_TN.tolist()])
            size = f"{len(encoded) / TURN:6.1f} ({stored(encoded):.1f})"
            most = drawn.row_bytes(QWEN, draws)
            print(f"  {draws} draws at {entropy:.1f} nats            {size}, {kinds:.1f} different ids, never above {most:.1f}")


def model_folder(root: Path, vocabulary: int, width: int, layers: int) -> tuple[Path, int]:
    """An untrained Llama with the stand-in's tokenizer, as an ordinary folder; and how many parameters it has."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(shutil.copytree(TOKENIZER, root / f"llama-{vocabulary}", ignore=shutil.ignore_patterns("*.safetensors", "config.json")))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    with quietly():
        model.save_pretrained(folder)
    return folder, sum(p.numel() for p in model.parameters())


def asked(count: int) -> list[Request]:
    words = "one two three four five six seven eight nine ten".split()
    return [
        Request(f"c{i:04d}", "open-0", "Describe the audio.", {"language": "english", "transcript": " ".join(words[: 2 + i % 8])})
        for i in range(count)
    ]


def teacher(folder: Path, prompt: Prompt, **settings: Any) -> HfLocalTeacher:
    fields = ["language", "transcript"]
    return HfLocalTeacher(HfLocalConfig(model=str(folder), fields=fields, dtype="float32", max_new_tokens=TURN, **settings), prompt)


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def generation(folder: Path, size: int, prompt: Prompt, rounds: int) -> None:
    """Batched against one by one, on the same requests."""
    together, alone = teacher(folder, prompt, batch_size=64), teacher(folder, prompt, batch_size=1)
    some, few = asked(64), asked(64)[::8]
    took = [(seconds(lambda: together.answer(some)) / len(some), seconds(lambda: alone.answer(few)) / len(few)) for _ in range(rounds)]
    batched, single = (median(times) for times in zip(*took, strict=True))
    ways = f"{batched:.3f} s each in batches of 64, {single:.3f} s one by one: {single / batched:.1f} x"
    print(f"hf_local answers, {size / 1e6:.0f} M parameters: {ways}")


def scoring_cost(folder: Path, size: int, prompt: Prompt, rounds: int) -> None:
    """Where the time of a scoring pass goes: the model (blocks and head), taking what is stored from its logits, and everything around."""
    signals = SignalsConfig(topk=TopKStore(k=64))
    scorer, requests = teacher(folder, prompt, batch_size=32, signals=signals), asked(64)
    rng = np.random.default_rng(0)
    answers = [Answer("", rng.integers(5, 1500, TURN).tolist(), 0, "eos") for _ in requests]
    scorer.score(requests[:2], answers[:2])
    spent: dict[str, float] = {}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            began = time.process_time()
            try:
                return work(*args)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - began

        return run

    plain, inner = scoring.top, scorer._scorer
    scoring.top = timed("top", plain)
    inner._blocks, inner._logits = timed("model", inner._blocks), timed("model", inner._logits)  # type: ignore[method-assign]
    found = []
    for _ in range(rounds):
        spent.clear()
        whole = seconds(lambda: scorer.score(requests, answers))
        found.append((spent["model"], spent["top"] / spent["model"], (whole - spent["model"] - spent["top"]) / spent["model"]))
    scoring.top = plain
    model, top, around = (median(values) for values in zip(*found, strict=True))
    tokens = len(requests) * TURN
    print(
        f"scoring top-64 over {inner.vocabulary:,} ids, {size / 1e6:.0f} M parameters: {tokens / model:.0f} response tokens per second of "
        f"the model; beyond it: softmax and top-k {100 * top:.1f} %, Python side {100 * around:.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    sizes()
    prompt = Prompt((ROOT / "shards/prompts/meta_prompt.j2").read_text(encoding="utf-8").rstrip("\n"), load_tokenizer(str(TOKENIZER)))
    with TemporaryDirectory() as root:
        folder, size = model_folder(Path(root), 32_000, 384, 10)
        generation(folder, size, prompt, rounds)
        scoring_cost(folder, size, prompt, rounds)
        scoring_cost(*model_folder(Path(root), QWEN, 256, 8), prompt, rounds)


if __name__ == "__main__":
    sys.exit(main())
