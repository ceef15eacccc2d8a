"""What the student, a teacher and a scorer get are the tokens of the whole conversation, in the templates of the models in use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from speechkd.core.errors import InputError
from speechkd.models.prompt import Prompt
from tests.models.chat_templates import FAMILIES, TODAY, tokenizer_of

_TEMPLATE = "{{ question }}\n<AUDIO>{{ audio }}</AUDIO>"
_WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]) | st.sampled_from("\n \"'.aß今"), max_size=30)


@cache
def _prompt(family: str) -> Prompt:
    kind, marks, template, _ = FAMILIES[family]
    return Prompt(_TEMPLATE, tokenizer_of(kind, marks, template), "here.j2")


def _whole(prompt: Prompt, message: str, answer: str, *more: str) -> list[int]:
    """Tokens of a conversation, rendered and tokenized in one piece."""
    roles = ("user", "assistant", "user")
    turns = [{"role": role, "content": text} for role, text in zip(roles, (message, answer, *more), strict=False)]
    text = prompt.tokenizer.apply_chat_template(
        turns, chat_template=prompt.tokenizer.chat_template.replace(TODAY, "'2024-07-26'"), tokenize=False, date_string="26 Jul 2024"
    )
    ids: list[int] = prompt.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(question=_WORDS, metadata=_WORDS, answer=_WORDS.filter(str.strip))
def test_prompt_and_answer_are_the_tokens_of_the_whole_conversation(family: str, question: str, metadata: str, answer: str) -> None:
    prompt = _prompt(family)
    answer = prompt.marks.plain(answer).strip() or "x"
    more = ["And?"] if family.startswith("glm") else []  # whose turn ends with the mark of the next
    whole = _whole(prompt, prompt.message(question, metadata), answer, *more)
    joined = [*prompt.teacher(question, metadata), *prompt.answer(answer)]
    assert joined == whole[: len(joined)]
    assert joined[-1] == prompt.end_of_turn == prompt.tokenizer.convert_tokens_to_ids(FAMILIES[family][3])
    prompt_ids, cut = prompt.teacher(question, metadata), prompt.answer(answer, ended=False)
    assert [*prompt_ids, *cut] == whole[: len(prompt_ids) + len(cut)], "a cut answer is a beginning of the whole one"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_student_hears_between_the_tokens_of_the_whole_conversation(family: str) -> None:
    """With a token for the clip in the text, as a speech LLM's own template has it, everything around it stays what it is."""
    prompt = _prompt(family)
    around = prompt.student("What language is spoken?")
    kind, marks, template, _ = FAMILIES[family]
    hearing = Prompt(_TEMPLATE, tokenizer_of(kind, marks, template), "here.j2")
    hearing.tokenizer.add_tokens([AddedToken("<|clip|>", normalized=False)])
    clip = hearing.tokenizer.convert_tokens_to_ids("<|clip|>")
    whole = _whole(hearing, "What language is spoken?\n<AUDIO><|clip|></AUDIO>", "german")
    spot = whole.index(clip)
    assert around.before == whole[:spot]
    rest = [*around.after, *prompt.answer("german")]
    assert rest == whole[spot + 1 :][: len(rest)] or len(whole) - spot == len(rest)  # GLM-4 ends a turn with the mark of the next


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_spells_no_mark_in_any_template(family: str) -> None:
    prompt = _prompt(family)
    for mark in FAMILIES[family][1]:
        ids = prompt.answer(f"so {mark} it \ue002start\ue003 \ue000span\ue001 is")
        marks = prompt.tokenizer.convert_tokens_to_ids(list(FAMILIES[family][1]))
        assert ids[-1] == prompt.end_of_turn and not {*ids[:-1]} & {*marks}
        assert max(ids) < len(prompt.tokenizer)


def test_a_prompt_is_the_same_on_any_day() -> None:
    prompt = _prompt("llama-3.2")
    text = prompt.tokenizer.decode(prompt.teacher("Q?", "{}"))
    assert "Today Date: 26 Jul 2024" in text
    prompt = _prompt("mistral-small")
    assert "The current date is 2024-07-26." in prompt.tokenizer.decode(prompt.teacher("Q?", "{}"))


_DROPS = {
    "in capitals": "| upper",
    "without line ends": "| replace('\\n', ' ')",
    "escaped for HTML": "| e",
    "as JSON": "| tojson",
    "cut": "[:200]",
    "without tags": "| striptags",
    "first line": ".split('\\n')[0]",
    "twice": "+ m.content",
    "parts": "[0].text",
    "missing key": "[0].text.x",
    "wrong type": "+ 1",
    "not at all": "[:0]",
    "single spaces": "| replace('  ', ' ')",
    "wrapped": "| wordwrap(40)",
}
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == ROLE %}"
    "{{ m.content HOW }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize("how", _DROPS)
def test_a_template_that_loses_or_alters_the_message_is_refused(how: str) -> None:
    template = _CHATML.replace("ROLE", "'user'").replace("HOW", _DROPS[how])
    with pytest.raises(InputError, match="chat template (loses|alters|repeats|fails)") as caught:
        Prompt(_TEMPLATE, tokenizer_of("bytes", FAMILIES["qwen2"][1], template), "here.j2")
    assert "\n" not in str(caught.value) and "chat_template.jinja" in str(caught.value)


def test_a_template_that_does_not_show_the_answer_is_refused() -> None:
    only_users = "{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    for template in (
        only_users,
        "{{ messages[0].content }}",
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "{{ 1 / 0 }}",
    ):
        with pytest.raises(InputError, match="chat template"):
            Prompt(_TEMPLATE, tokenizer_of("bytes", FAMILIES["qwen2"][1], template), "here.j2")


def test_a_message_that_only_some_questions_lose_is_refused_when_it_is_asked() -> None:
    """A template that treats some texts in its own way, as those do that cut reasoning out of a message."""
    template = _CHATML.replace("ROLE", "'user'").replace("HOW", ".split('###')[0]")
    prompt = Prompt(_TEMPLATE, tokenizer_of("bytes", FAMILIES["qwen2"][1], template), "here.j2")
    assert prompt.teacher("Q?", "{}")
    ask: list[Callable[[], object]] = [lambda: prompt.teacher("A ### B", "{}"), lambda: prompt.student("A ### B")]
    for call in ask:
        with pytest.raises(InputError, match="loses or alters the user's message"):
            call()


def test_a_tokenizer_that_merges_header_and_answer_is_refused() -> None:
    """A header that ends in `{`: with an answer's quotation mark it is one token, and no prompt ends where that answer begins."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role + '\\n' + ('{' if m.role == 'assistant' else '') + m.content }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(InputError, match="merges"):
        Prompt(_TEMPLATE, tokenizer_of("bytes", FAMILIES["qwen2"][1], template), "here.j2")
