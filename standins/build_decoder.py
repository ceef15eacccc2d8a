"""Trains a small Whisper decoder on the stand-in encoder; a Q-Former can be initialised from it (`init_from`).

    python standins/build_decoder.py --out runs/decoder

The encoder stays frozen. Like the encoder, the decoder trains on the card's reserved clips: no clip or transcript of the test splits, no
voice of the unseen split. It is not shipped: miniatures build it. `score` measures its greedy transcripts of the test splits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jiwer
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from build_encoder import HEADS, INNER, rate_at
from clips import log_mel, synthesise
from texts import load_source

BATCH, PEAK_LR, IGNORED = 32, 2e-3, -100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parent
    parser.add_argument("--card", type=Path, default=here.parent / "shards/cards/minibabel_digits.yaml")
    parser.add_argument("--encoder", type=Path, default=here / "encoder")
    parser.add_argument("--llm", type=Path, default=here / "llm", help="model folder whose tokenizer encodes the transcripts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scores", type=Path, help="where to write the scores (default: OUT.json)")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--positions", type=int, default=32, help="longest transcript in tokens, and most queries that start from it")
    parser.add_argument("--clips", type=int, default=8000)
    parser.add_argument("--steps", type=int, default=700)
    args = parser.parse_args()

    source, _ = load_source(args.card)
    items = source.reserved_items()[: args.clips]
    extractor = WhisperFeatureExtractor.from_pretrained(args.encoder)
    tokenizer = AutoTokenizer.from_pretrained(args.llm)
    model = with_decoder(args.encoder, tokenizer, args.layers, args.positions)
    train(model, synthesise(args.card, items), [str(item.metadata["transcript"]) for item in items], extractor, tokenizer, args.steps)
    model.save_pretrained(args.out)
    extractor.save_pretrained(args.out)

    tests = [item for item in source.items() if item.split.startswith("test")]
    wrong = score(model, synthesise(args.card, tests), [str(item.metadata["transcript"]) for item in tests], extractor, tokenizer)
    (args.scores or args.out.with_suffix(".json")).write_text(json.dumps({"word_error_rate": wrong, "clips": len(tests)}) + "\n")
    print(f"decoder: word error rate {wrong:.3f} on {len(tests)} clips", flush=True)


def with_decoder(encoder: Path, tokenizer: PreTrainedTokenizerFast, layers: int, positions: int) -> WhisperForConditionalGeneration:
    """The encoder with a randomly initialised decoder over the tokenizer's vocabulary; texts start with its pad token, end with its eos."""
    config = WhisperConfig.from_pretrained(encoder)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"decoder_layers": layers, "decoder_attention_heads": HEADS, "decoder_ffn_dim": INNER, "max_target_positions": positions}
    config.update({**ids, **sizes, "decoder_start_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer), "architectures": None})
    config.begin_suppress_tokens = None
    torch.manual_seed(0)
    whole = WhisperForConditionalGeneration(config)
    whole.model.encoder.load_state_dict(WhisperModel.from_pretrained(encoder).encoder.state_dict())
    whole.generation_config.forced_decoder_ids = whole.generation_config.begin_suppress_tokens = None
    return whole


def train(
    model: WhisperForConditionalGeneration,
    clips: Sequence[np.ndarray],
    texts: Sequence[str],
    extractor: WhisperFeatureExtractor,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
) -> None:
    """Train on next tokens of the transcripts, with the encoder frozen."""
    model.model.encoder.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, steps))
    draw, began = np.random.default_rng(0), time.monotonic()
    for step in range(steps):
        chosen = draw.integers(len(clips), size=BATCH)
        labels_BT = _labels(tokenizer, [texts[index] for index in chosen])
        inputs_BT = torch.cat([torch.full((BATCH, 1), model.config.decoder_start_token_id), labels_BT[:, :-1]], 1)
        with torch.no_grad():
            states_BFD = model.model.encoder(log_mel(extractor, [clips[index] for index in chosen])).last_hidden_state
        hidden_BTD = model.model.decoder(
            input_ids=inputs_BT.masked_fill(inputs_BT == IGNORED, model.config.pad_token_id), encoder_hidden_states=states_BFD
        ).last_hidden_state
        loss = cross_entropy(model.proj_out(hidden_BTD).flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 49 or step == steps - 1:
            print(f"decoder step {step + 1}/{steps} loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True)
    model.eval()


def _labels(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Labels [B, T]: the ids of each text and the eos token, then IGNORED."""
    rows = [[*tokenizer(text, add_special_tokens=False)["input_ids"], int(tokenizer.eos_token_id)] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [IGNORED] * (longest - len(row)) for row in rows])


@torch.inference_mode()
def score(
    model: WhisperForConditionalGeneration,
    clips: Sequence[np.ndarray],
    texts: Sequence[str],
    extractor: WhisperFeatureExtractor,
    tokenizer: PreTrainedTokenizerFast,
) -> float:
    """Word error rate of greedy transcripts."""
    read: list[str] = []
    for start in range(0, len(clips), 64):
        features_BMT = log_mel(extractor, clips[start : start + 64])
        ids_BT = torch.full((len(features_BMT), 1), model.config.decoder_start_token_id)
        states = model.model.encoder(features_BMT)
        for _ in range(model.config.max_target_positions - 1):
            best_B = model(encoder_outputs=states, decoder_input_ids=ids_BT).logits[:, -1].argmax(-1)
            ids_BT = torch.cat([ids_BT, best_B[:, None]], 1)
            if bool((ids_BT == tokenizer.eos_token_id).any(1).all()):
                break
        for row in ids_BT[:, 1:].tolist():
            end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
            read.append(tokenizer.decode(row[:end]))
    return float(jiwer.wer(list(texts), read))


if __name__ == "__main__":
    main()
