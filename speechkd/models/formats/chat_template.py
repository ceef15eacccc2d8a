"""The chat template of a folder for another engine: the student's prompt template around question and clip, inside the model's own."""

from __future__ import annotations

from speechkd.core.errors import InputError
from speechkd.models.conversation import fixed_template
from speechkd.models.exported import DistilledStudent
from speechkd.models.prompt import Prompt

_AROUND = """\
{%- macro speechkd_prompt(question, audio) %}@PROMPT@{% endmacro -%}
{%- set turns = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set turns.messages = turns.messages + [message] -%}
{%- else -%}
{%- set heard = namespace(question='', audio='') -%}
{%- for content in message['content'] -%}
{%- if content['type'] == 'text' -%}
{%- set heard.question = heard.question + content['text'] -%}
{%- else -%}
{%- set heard.audio = heard.audio + '@AUDIO@' -%}
{%- endif -%}
{%- endfor -%}
{%- set text = speechkd_prompt(heard.question, heard.audio) if heard.audio else heard.question -%}
{%- set turns.messages = turns.messages + [{'role': message['role'], 'content': text}] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = turns.messages -%}
"""
"""Turns parts (`text`, and any kind of sound) into the text that the model's own chat template takes, as a student is asked"""
QUESTION = 'What is said? "Über 3,5 %"'


def chat_template(prompt: Prompt, audio: str) -> str:
    """A chat template that takes messages with parts; `audio` stands where the clip is."""
    own = prompt.text[:-1] if prompt.text.endswith("\n") else prompt.text  # as Jinja reads a whole template
    return _AROUND.replace("@AUDIO@", audio).replace("@PROMPT@", own) + fixed_template(prompt.tokenizer)


def chat_text(tokenizer: object, template: str, question: str) -> str:
    """A question about a clip up to its answer, as other engines render it."""
    turns = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": question}]}]
    text: str = tokenizer.apply_chat_template(  # type: ignore[attr-defined]
        turns, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    return text


def check_chat(student: DistilledStudent, tokenizer: object, template: str, audio: str) -> None:
    """Raises InputError where a question rendered so is not, token by token, the prompt that the student was trained with."""
    ids = tokenizer(chat_text(tokenizer, template, QUESTION), add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    ours, mark = student.prompt.student(QUESTION), tokenizer.convert_tokens_to_ids(audio)  # type: ignore[attr-defined]
    if ids != [*ours.before, mark, *ours.after]:
        raise InputError(
            "the student's prompt cannot be written as a chat template: rendered by transformers, it gives other tokens than in training; "
            "keep speechkd's own format (--format speechkd)"
        )
