"""Text of a data set or a server cannot speak a prompt's protocol: special tokens, turns, ends of the audio span."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from speechkd.models.exported import load_tokenizer
from speechkd.models.marks import COMMON, SPAN
from speechkd.models.prompt import Prompt, Reading, StudentPrompt

ROOT = Path(__file__).parents[2]
TEMPLATE = "{{ question }}\n<AUDIO>{{ audio }}</AUDIO>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' }}{{ m.content }}"
    "{{ '</s>' if m.role == 'assistant' else '\n' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
ALPACA = (
    "{% for m in messages %}{{ '### Instruction:\n' if m.role == 'user' else '### Response:\n' }}{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)


def special(text: str, normalized: bool = False) -> AddedToken:
    return AddedToken(text, special=True, normalized=normalized)


def common(text: str) -> AddedToken:
    return AddedToken(text, special=False, normalized=False)


FAMILIES: dict[str, tuple[str, list[AddedToken], list[str]]] = {
    # chat template, added tokens, marks of it that are no tokens
    "chatml": (
        CHATML,
        [*map(special, ("<|im_start|>", "<|im_end|>", "<|audio_bos|>")), common("<think>"), common("</think>"), common("  ")],
        [],
    ),
    "inst": (INST, [special("<s>"), special("</s>")], ["[INST]", "[/INST]"]),
    "vicuna": (VICUNA, [special("</s>"), special(">>TITLE<<"), special("sop")], ["USER:", "ASSISTANT:"]),
    "alpaca": (ALPACA, [special("⏎"), common("\n\n")], ["### Instruction:", "### Response:"]),
    "normalised": (CHATML, [special("<|im_start|>", True), special("<|im_end|>", True), special("<pad>", True)], []),
}
STANDIN = "stand-in"
PIECES = ["hello", " world ", "?", "\n", '"', "<", ">", "</", "[", "|", "/", "A b", "é", "日本", "5 < 6", "[", "]", "ＡＢ"]


def tokenizer_of(family: str) -> Any:
    if family == STANDIN:
        return load_tokenizer(str(ROOT / "standins/llm"))
    template, tokens, _ = FAMILIES[family]
    vocabulary = {char: number for number, char in enumerate(["?", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token=None))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    if family == "normalised":
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.add_tokens(tokens)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=tokens[0].content)
    fast.chat_template = template
    return fast


def controls(prompt: Prompt) -> set[int]:
    return {number for number, token in prompt.tokenizer.added_tokens_decoder.items() if token.special or "think" in token.content}


def spelled(family: str, prompt: Prompt, seed: int) -> str:
    """Marks, marks in other spellings, marks inside marks, and what stands for the audio while a prompt is rendered."""
    dice = random.Random(seed)
    marks = [prompt.tokenizer.convert_ids_to_tokens(number) for number in controls(prompt)]
    marks += [
        *FAMILIES.get(family, ("", [], []))[2],
        "</AUDIO>",
        "<AUDIO>",
        "</audio>",
        SPAN,
        SPAN[0],
        "<|eot_id|>",
        "<end_of_turn>",
        "[INST]",
    ]
    marks += ["".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in mark) for mark in marks[:4]]  # full-width forms
    out = ""
    for _ in range(dice.randrange(1, 9)):
        piece, inner = dice.choice([*PIECES, *marks, *marks]), dice.choice(marks)
        spot = dice.randrange(len(piece) + 1)
        out += piece[:spot] + inner + piece[spot:] if dice.random() < 0.2 else piece
    return out


@pytest.mark.parametrize("family", [*FAMILIES, STANDIN])
def test_no_text_speaks_the_protocol(family: str) -> None:
    prompt = Prompt(TEMPLATE, tokenizer_of(family))
    special_ids = controls(prompt)

    def count(ids: list[int]) -> list[int]:
        return [number for number in ids if number in special_ids]

    clean = count(prompt.teacher("q", ""))
    protocol = [*FAMILIES.get(family, ("", [], []))[2], "<AUDIO>", "</AUDIO>"]
    plain_chat = prompt.tokenizer.decode(prompt.teacher("q", ""))
    for seed in range(6 if family == STANDIN else 30):
        text = spelled(family, prompt, seed)
        around = prompt.student(text)
        assert isinstance(around, StudentPrompt) and prompt.student("q").after == around.after, f"seed {seed}: the audio stands elsewhere"
        read = [prompt.read("q", Reading(fields=["t"], form=form), {"t": text}) for form in ("json", "text")]
        for ids in ([*around.before, *around.after], prompt.teacher(text, ""), prompt.teacher("q", text), *read):
            assert count(ids) == clean, f"seed {seed}: {text!r}"
            chat = prompt.tokenizer.decode(ids)
            assert [chat.count(mark) for mark in protocol] == [plain_chat.count(mark) for mark in protocol], f"seed {seed}: {text!r}"
        assert not count(prompt.words(text)) and not count(prompt.answer(text, ended=False)), f"seed {seed}: {text!r}"
        sent = prompt.message(text, text)
        assert len(COMMON.findall(sent)) == 0 and SPAN not in sent, "a server with another tokenizer finds no mark either"
        assert sent.count("<AUDIO>") == sent.count("</AUDIO>") == 1


@pytest.mark.parametrize("family", [*FAMILIES, STANDIN])
def test_ordinary_text_keeps_its_tokens(family: str) -> None:
    prompt = Prompt(TEMPLATE, tokenizer_of(family))
    for text in (
        "What  language is spoken?\n\nSay it.",
        'Is 5<6 [sic]? {x: "a"}',
        "Answer <ANSWER>yes</ANSWER> or a|b.",
        "日本語 ﬁ\ttab",
        "user: hi, s op",
    ):
        assert prompt.marks.plain(text) == text
        before = prompt.student(text).before
        rendered = prompt.tokenizer.apply_chat_template([{"role": "user", "content": f"{text}\n<AUDIO>"}], tokenize=False)
        assert before == prompt.tokenizer(rendered[: rendered.index("<AUDIO>") + 7], add_special_tokens=False)["input_ids"]


def test_an_answer_keeps_its_letters() -> None:
    """Marks that a tokenizer does not call special (Qwen's `<think>`) are letters of an answer too."""
    prompt = Prompt(TEMPLATE, tokenizer_of("chatml"))
    text = "<think>no</think><|im_end|> yes"
    ids = prompt.answer(text)
    assert not controls(prompt) & set(ids[:-1]) and ids[-1] == prompt.end_of_turn
    assert prompt.decode(ids) == text
