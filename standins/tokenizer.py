"""The LLM stand-in's tokenizer: a sentencepiece BPE model, saved in Hugging Face's format."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from texts import AUDIO_CLOSE, AUDIO_OPEN, CHAT_TEMPLATE
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<|pad|>", "<|im_start|>", "<|im_end|>", AUDIO_OPEN, AUDIO_CLOSE)
MARKS = ("\n", '{"', '": "', '": ', '", "', ', "', '"}', '"', "{", "}", ":", ",", ".", "?")
"""Fixed tokens for punctuation: they keep JSON short, and a word gets the same tokens whatever stands beside it."""


def build_tokenizer(lines: Iterable[str], out: Path, vocab_size: int = 1536) -> PreTrainedTokenizerFast:
    """Train on `lines`, save a folder that AutoTokenizer loads (and the sentencepiece model itself), and return it."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=[mark.replace(" ", "\u2581") for mark in MARKS],
        num_threads=1,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    core = Tokenizer(models.BPE(vocab=vocab, merges=_merges(vocab), unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never"), decoders.Fuse()])
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    core.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", AUDIO_OPEN, AUDIO_CLOSE],
        model_max_length=512,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    # Every version of transformers reads this class as "use tokenizer.json as it is"; older ones lack the default class.
    config = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    (out / "tokenizer_config.json").write_text(
        json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n", encoding="utf-8"
    )
    (out / "tokenizer.model").write_bytes(buffer.getvalue())
    return tokenizer


def _merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The merge list of a sentencepiece BPE vocabulary: pieces are numbered in merge order."""
    merges: list[tuple[int, int, int, tuple[str, str]]] = []
    for piece, rank in vocab.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                merges.append((rank, vocab[left], vocab[right], (left, right)))
    return [pair for _, _, _, pair in sorted(merges)]
