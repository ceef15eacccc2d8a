"""Builds the stand-in encoder: a small Whisper encoder, pre-trained with CTC on characters and by predicting its own input spectrum.

    python standins/build_encoder.py --out standins/encoder

It trains on the card's reserved splits: no clip or transcript of the test splits, no unseen voice, no attribute label. CTC alone leaves
little information about the voice in a frame, unlike published encoders, which train on far more than words. So the states of a low layer
also learn to predict the clip's mean log-mel spectrum, a target made from the input. The CTC head is saved beside the encoder, with its
characters, to measure what the encoder itself recognises.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import ctc_loss
from transformers import AutoModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from clips import RATE, log_mel, synthesise
from texts import load_source
from weights import file_digest

from speechkd.data.sources.base import Item

WIDTH, LAYERS, HEADS, INNER, MELS, SECONDS = 128, 3, 4, 512, 80, 3
STEPS, BATCH, PEAK_LR, WARMUP = 1600, 32, 2e-3, 150
PACKED_SHARE, PACKED_UNTIL = 0.75, 0.8
"""Most training windows hold several clips in a row (a clip is a third of a window); the last steps use single clips, as in practice."""
SPECTRUM_WEIGHT, SPECTRUM_LAYER = 0.3, 1
"""A low layer predicts the spectrum, which leaves the upper layers to the words."""
BLANK = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parent
    parser.add_argument("--card", type=Path, default=here.parent / "shards/cards/minibabel.yaml")
    parser.add_argument("--out", type=Path, default=here / "encoder")
    parser.add_argument("--scores", type=Path, help="where to write the scores (default: OUT/../scores.json, key `encoder`)")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()

    source, _ = load_source(args.card)
    items = source.reserved_items()
    began = time.monotonic()
    clips = synthesise(args.card, items)
    print(
        f"encoder: {len(clips)} clips, {sum(map(len, clips)) / RATE / 3600:.1f} h, synthesised in {time.monotonic() - began:.0f} s",
        flush=True,
    )
    extractor = WhisperFeatureExtractor(feature_size=MELS, chunk_length=SECONDS)
    kept = [index for index, clip in enumerate(clips) if len(clip) <= extractor.n_samples]
    clips, texts = [clips[index] for index in kept], [str(items[index].metadata["transcript"]) for index in kept]
    alphabet = sorted({letter for text in texts for letter in text})
    model, head = train(clips, texts, alphabet, extractor, args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    extractor.save_pretrained(args.out)
    save_file({"weight": head.weight.detach(), "bias": head.bias.detach()}, args.out / "ctc_head.safetensors")
    (args.out / "ctc_characters.json").write_text(json.dumps(alphabet, ensure_ascii=False) + "\n", encoding="utf-8")

    scores = score(args.card, args.out, [item for item in source.items() if item.split.startswith("test")])
    target = args.scores or args.out.parent / "scores.json"
    all_scores = json.loads(target.read_text()) if target.is_file() else {}
    digests = {name: file_digest(args.out / name) for name in ("model.safetensors", "ctc_head.safetensors")}
    all_scores["encoder"] = {"sha256": digests, "ctc_word_accuracy": scores}
    target.write_text(json.dumps(all_scores, indent=1) + "\n")
    print(json.dumps(all_scores["encoder"]), flush=True)


def train(
    clips: Sequence[np.ndarray], texts: Sequence[str], alphabet: Sequence[str], extractor: WhisperFeatureExtractor, steps: int
) -> tuple[WhisperModel, nn.Linear]:
    """Train with CTC from random weights; returns (model, head). Uses bfloat16 autocast if the CPU supports it (twice as fast)."""
    torch.manual_seed(0)
    # eager: the fused attention takes 0.16 s a backward pass in bfloat16 on a CPU, this 0.08 s (measured)
    model: WhisperModel = AutoModel.from_config(_config(), attn_implementation="eager")
    head = nn.Linear(WIDTH, len(alphabet) + 1)
    spectrum = nn.Linear(WIDTH, MELS)  # used only here, not saved
    trained = [p for p in (*model.encoder.parameters(), *head.parameters(), *spectrum.parameters()) if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, steps))
    number = {letter: index + 1 for index, letter in enumerate(alphabet)}
    draw, began = np.random.default_rng(0), time.monotonic()
    half = torch.cpu._is_avx512_bf16_supported()
    for step in range(steps):
        packed = PACKED_SHARE if step < PACKED_UNTIL * steps else 0.0
        windows = [_window(clips, texts, draw, extractor.n_samples, packed) for _ in range(BATCH)]
        labels = [[number[letter] for letter in window.text] for window in windows]
        features_BMT = log_mel(extractor, [window.samples for window in windows])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            states = model.encoder(features_BMT, output_hidden_states=True).hidden_states
            logits_BFC, spectra_BFM = head(states[-1]), spectrum(states[SPECTRUM_LAYER])
        ctc = ctc_loss(
            logits_BFC.float().log_softmax(-1).transpose(0, 1),
            torch.tensor([n for row in labels for n in row]),
            torch.full((BATCH,), logits_BFC.shape[1]),
            torch.tensor([len(row) for row in labels]),
            blank=BLANK,
            zero_infinity=True,
        )
        loss = ctc + SPECTRUM_WEIGHT * spectrum_loss(spectra_BFM.float(), features_BMT, windows)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 49 or step == steps - 1:
            seconds = time.monotonic() - began
            print(f"encoder step {step + 1}/{steps} loss {loss.item():.3f}, of CTC {ctc.item():.3f}, {seconds:.0f} s", flush=True)
    return model.eval(), head


@dataclass(frozen=True, slots=True)
class Window:
    """Clips in a row: samples [T], their text, and the (begin, end) of each in samples."""

    samples: np.ndarray
    text: str
    spans: list[tuple[int, int]]


def spectrum_loss(spectra_BFM: Tensor, features_BMT: Tensor, windows: Sequence[Window]) -> Tensor:
    """Mean squared error between each frame's prediction [M] and its clip's mean log-mel spectrum; 1 for one constant guess.

    Each mel band is divided by its variance between clips; pauses and padding do not count.
    """
    frame = RATE * SECONDS // spectra_BFM.shape[1]  # samples that an encoder frame stands for
    mels = features_BMT.shape[2] // spectra_BFM.shape[1]  # log-mel frames, likewise
    predictions, targets = [], []
    for row, window in enumerate(windows):
        for begin, end in window.spans:
            first, last = begin // frame, max(begin // frame + 1, end // frame)
            predictions.append(spectra_BFM[row, first:last])
            targets.append(features_BMT[row, :, first * mels : last * mels].mean(1))
    targets_NM = torch.stack(targets)
    errors_NM = torch.stack(
        [(spectra_FM - target_M).square().mean(0) for spectra_FM, target_M in zip(predictions, targets_NM, strict=True)]
    )
    return (errors_NM / targets_NM.var(0)).mean()


def _window(clips: Sequence[np.ndarray], texts: Sequence[str], draw: np.random.Generator, room: int, packed: float) -> Window:
    """One clip, or with probability `packed` as many clips as fit, with short pauses between them."""
    first = int(draw.integers(len(clips)))
    parts, text, used = [clips[first]], texts[first], len(clips[first])
    spans = [(0, used)]
    more = draw.random() < packed
    while more:
        pause, chosen = int(draw.uniform(0.05, 0.3) * RATE), int(draw.integers(len(clips)))
        used += pause + len(clips[chosen])
        more = used <= room
        if more:
            parts += [np.zeros(pause, np.int16), clips[chosen]]
            text += " " + texts[chosen]
            spans.append((used - len(clips[chosen]), used))
    return Window(np.concatenate(parts), text, spans)


@torch.inference_mode()
def score(card: Path, folder: Path, items: Sequence[Item]) -> dict[str, dict[str, dict[str, float | int]]]:
    """Word accuracy (hits / reference words) of greedy CTC decoding, per split and kind, from the saved folder."""
    model = WhisperModel.from_pretrained(folder, dtype=torch.float32).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    weights = load_file(folder / "ctc_head.safetensors")
    alphabet = json.loads((folder / "ctc_characters.json").read_text(encoding="utf-8"))
    clips, read = synthesise(card, items), []
    for start in range(0, len(clips), 64):
        hidden_BFD = model.encoder(log_mel(extractor, clips[start : start + 64])).last_hidden_state
        read += [greedy(row, alphabet) for row in nn.functional.linear(hidden_BFD, weights["weight"], weights["bias"]).argmax(-1)]
    out: dict[str, dict[str, dict[str, float | int]]] = {}
    for split in sorted({item.split for item in items}):
        for kind in sorted({str(item.metadata["kind"]) for item in items}):
            pairs = [
                (str(i.metadata["transcript"]), text)
                for i, text in zip(items, read, strict=True)
                if (i.split, i.metadata["kind"]) == (split, kind)
            ]
            result = jiwer.process_words([truth for truth, _ in pairs], [text for _, text in pairs])
            words = result.hits + result.substitutions + result.deletions
            out.setdefault(split, {})[kind] = {"accuracy": result.hits / words, "words": words, "clips": len(pairs)}
    return out


def greedy(best_F: Tensor, alphabet: Sequence[str]) -> str:
    """[F] class per frame -> text: repeats merged, blanks dropped."""
    merged = torch.unique_consecutive(best_F).tolist()
    return "".join(alphabet[index - 1] for index in merged if index != BLANK)


def rate_at(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def _config() -> WhisperConfig:
    return WhisperConfig(
        d_model=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=INNER,
        num_mel_bins=MELS,
        max_source_positions=SECONDS * 50,
        decoder_layers=0,  # the decoder is not used
        decoder_attention_heads=HEADS,
        decoder_ffn_dim=8,
        vocab_size=8,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )


if __name__ == "__main__":
    main()
