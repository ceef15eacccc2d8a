"""Builds the stand-in teacher LLM: a small Llama, trained from scratch on the card's text, that answers questions about JSON metadata.

    python standins/build_llm.py --out standins/llm

It never trains on a transcript of the test splits; `score` measures its greedy answers about the test splits' metadata.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from texts import DESCRIBE, FIELDS, Dialogue, answer, dialogue, load_source, questions, user_message
from tokenizer import build_tokenizer
from weights import file_digest

from speechkd.data.sources.base import Item

WIDTH, LAYERS = 128, 4
BATCH, WARMUP = 32, 60
PHASES = ((2200, 3e-3, 1 / 3), (800, 1e-3, 0.0))
"""(steps, peak learning rate, share of dialogues with mixed attributes and words): first it learns to read, then the card's metadata."""
IGNORED = -100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parent
    parser.add_argument("--card", type=Path, default=here.parent / "shards/cards/minibabel.yaml")
    parser.add_argument("--out", type=Path, default=here / "llm")
    parser.add_argument("--scores", type=Path, help="where to write the scores (default: OUT/../scores.json, key `llm`)")
    parser.add_argument("--width", type=int, default=WIDTH, help="a multiple of 64; the stand-in that ships has the default")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--steps", type=float, default=1.0, help="share of the steps")
    args = parser.parse_args()

    source, tasks = load_source(args.card)
    corpus = source.items()
    texts = [item for item in corpus if item.split == "train"] + source.reserved_items()
    draw = random.Random(0)
    sample = [dialogue(item, tasks, texts, draw, PHASES[0][2]) for item in texts[:8000]]
    tokenizer = build_tokenizer(
        ["user", "assistant"] * 50 + [part for one in sample for part in (*_plain(one), " " + one.answer)], args.out
    )
    torch.manual_seed(0)
    # eager: the fused attention takes 0.27 s a backward pass in bfloat16 on a CPU, this 0.11 s (measured)
    model: LlamaForCausalLM = AutoModelForCausalLM.from_config(_config(tokenizer, args.width, args.layers), attn_implementation="eager")
    for number, (steps, peak_lr, mixed) in enumerate(PHASES):
        train(model, tokenizer, texts, tasks, number, round(steps * args.steps), peak_lr, mixed)
    model.eval()
    model.save_pretrained(args.out)
    scores = score(args.out, [item for item in corpus if item.split.startswith("test")], tasks)
    target = args.scores or args.out.parent / "scores.json"
    all_scores = json.loads(target.read_text()) if target.is_file() else {}
    all_scores["llm"] = {"sha256": file_digest(args.out / "model.safetensors"), "read_metadata": scores}
    target.write_text(json.dumps(all_scores, indent=1) + "\n")
    print(json.dumps(all_scores["llm"]), flush=True)


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    items: Sequence[Item],
    tasks: Mapping[str, Any],
    phase: int,
    steps: int,
    peak_lr: float,
    mixed: float,
) -> None:
    """Train one phase: new dialogues at every step, loss only on the answers."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, steps))
    draw, began = random.Random(1 + phase), time.monotonic()
    half = torch.cpu._is_avx512_bf16_supported()
    recent: list[float] = []
    for step in range(steps):
        batch = [dialogue(draw.choice(items), tasks, items, draw, mixed) for _ in range(BATCH)]
        ids_BT, mask_BT, labels_BT = encode(tokenizer, batch)
        targets_BT = labels_BT[:, 1:]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            hidden_BTD = model.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state[:, :-1]
            logits_TV = model.lm_head(hidden_BTD[targets_BT != IGNORED])
        loss = cross_entropy(logits_TV.float(), targets_BT[targets_BT != IGNORED])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        recent.append(loss.item())
        if step % 50 == 49 or step == steps - 1:
            mean = sum(recent) / len(recent)
            print(f"llm phase {phase + 1} step {step + 1}/{steps} loss {mean:.4f} {time.monotonic() - began:.0f} s", flush=True)
            recent.clear()


def encode(tokenizer: PreTrainedTokenizerFast, batch: Sequence[Dialogue]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and labels, each [B, T], padded on the right; labels are ignored outside the answers."""
    rows: list[tuple[list[int], list[int]]] = []
    for one in batch:
        ids: list[int] = []
        labels: list[int] = []
        for user, reply in ((one.user, one.answer), *one.more):
            prompt = ("\n" if ids else "") + rendered(tokenizer, user)
            prompt_ids, reply_ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, reply + "<|im_end|>"))
            ids += prompt_ids + reply_ids
            labels += [IGNORED] * len(prompt_ids) + reply_ids
        rows.append((ids, labels))
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(batch), longest), int(tokenizer.pad_token_id))
    mask_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, IGNORED)
    for row, (ids, labels) in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        mask_BT[row, : len(ids)] = 1
        labels_BT[row, : len(ids)] = torch.tensor(labels)
    return ids_BT, mask_BT, labels_BT


def rendered(tokenizer: PreTrainedTokenizerFast, user: str) -> str:
    """The chat template's text up to the start of the answer."""
    return str(tokenizer.apply_chat_template([{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True))


@torch.inference_mode()
def score(folder: Path, items: Sequence[Item], tasks: Mapping[str, Any]) -> dict[str, dict[str, float | int]]:
    """Exact-match accuracy of greedy answers about unseen metadata, per question, from the saved folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked: list[Dialogue] = []
    for number, item in enumerate(items):
        metadata = {name: item.metadata[name] for name in FIELDS}
        for task, question in questions(item, tasks):
            if task != "describe" or question == DESCRIBE[number % len(DESCRIBE)]:
                asked.append(Dialogue(task, user_message(question, metadata), answer(task, metadata, tasks)))
    right: dict[str, list[bool]] = {}
    for start in range(0, len(asked), 128):
        batch = asked[start : start + 128]
        prompt = tokenizer([rendered(tokenizer, one.user) for one in batch], add_special_tokens=False, padding=True, return_tensors="pt")
        out_BT = model.generate(**prompt, max_new_tokens=32, do_sample=False)
        for one, text in zip(
            batch, tokenizer.batch_decode(out_BT[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True), strict=True
        ):
            right.setdefault(one.task, []).append(text == one.answer)
    return {task: {"accuracy": sum(marks) / len(marks), "n": len(marks)} for task, marks in sorted(right.items())}


def rate_at(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def _config(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        intermediate_size=3 * width,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.08,  # about 1/sqrt(width): the default 0.02 is for wide models, and this one then learns to look up late
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _plain(one: Dialogue) -> tuple[str, str]:
    """Question and metadata without the special tokens, for the tokenizer's training."""
    question, metadata = one.user.split("\n", 1)
    return question, metadata.removeprefix("<AUDIO>").removesuffix("</AUDIO>")


if __name__ == "__main__":
    main()
