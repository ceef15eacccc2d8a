"""Chat templates of common models, as their published files have them (parts for tools and system turns left out), and small tokenizers.

The tokenizers are of the models' kinds (byte-level BPE, SentencePiece BPE as transformers writes it) and have the marks of the models.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_3_2 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    '{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}{{- "Cutting Knowledge Date: December 2023\n" }}'
    '{{- "Today Date: " + date_string + "\n\n" }}{{- "<|eot_id|>" }}{%- for message in messages %}'
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}" + _ALTERNATE + "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
QWEN_2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_3 = (
    "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}{%- for message in messages[::-1] %}"
    "{%- set index = (messages|length - 1) - loop.index0 %}{%- if ns.multi_step_tool and message.role == 'user' and message.content is "
    "string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}"
    "{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}{%- for message in messages %}"
    "{%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}"
    "{%- if message.role == 'user' %}{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}"
    "{%- elif message.role == 'assistant' %}{%- set reasoning_content = '' %}{%- if '</think>' in content %}"
    "{%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}{%- if loop.index0 > ns.last_query_index %}"
    "{%- if loop.last or (not loop.last and reasoning_content) %}{{- '<|im_start|>' + message.role + '\n<think>\n' + "
    "reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}{%- else %}"
    "{{- '<|im_start|>' + message.role + '\n' + content }}{%- endif %}{%- else %}{{- '<|im_start|>' + message.role + '\n' + content }}"
    "{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == 'user' %}USER{% elif message['role'] == "
    "'assistant' %}ASSISTANT{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MISTRAL_1 = _MISTRAL.replace("USER", "{{ '[INST] ' + message['content'] + ' [/INST]' }}").replace(
    "ASSISTANT", "{{ message['content'] + eos_token}}"
)
MISTRAL_2 = MISTRAL_1.replace("{{ message['content'] + eos_token}}", "{{ ' ' + message['content'] + eos_token}}")
MISTRAL_3 = _MISTRAL.replace("USER", "{{ '[INST] ' + message['content'] + '[/INST]' }}").replace(
    "ASSISTANT", "{{ ' ' + message['content'] | trim + eos_token }}"
)
LLAMA_2 = _MISTRAL.replace("USER", "{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}").replace(
    "ASSISTANT", "{{ ' ' + message['content'].strip() + ' ' + eos_token }}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
GLM_4 = (
    "[gMASK]<sop>{% for item in messages %}{% if item['role'] == 'user' %}<|user|>\n{{ item['content'] }}"
    "{% elif item['role'] == 'assistant' %}<|assistant|>\n{{ item['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GLM_4_5 = (
    "[gMASK]<sop>{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}{% else %}<|assistant|>\n<think></think>"
    "{% if m.content.strip() %}{{ '\n' + m.content.strip() }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TODAY = "strftime_now('%Y-%m-%d')"
MISTRAL_SMALL = (
    "{{ bos_token }}{{ '[SYSTEM_PROMPT]The current date is ' + " + TODAY + " + '.[/SYSTEM_PROMPT]' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST]' + message['content'] + '[/INST]' }}{% else %}{{ message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
VICUNA = (
    "{{ 'A chat between a user and an assistant.' }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ ' USER: ' + message['content'] }}{% else %}{{ ' ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
PHI_3 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_LLAMA_3_MARKS = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
FAMILIES: dict[str, tuple[str, tuple[str, ...], str, str]] = {  # name -> kind of tokenizer, marks, template, end of turn
    "llama-3": ("bytes", _LLAMA_3_MARKS, LLAMA_3, "<|eot_id|>"),
    "llama-3.2": ("bytes", _LLAMA_3_MARKS, LLAMA_3_2, "<|eot_id|>"),
    "gemma-2": ("never", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), GEMMA_2, "<end_of_turn>"),
    "qwen2": ("bytes", ("<|endoftext|>", "<|im_end|>", "<|im_start|>"), QWEN_2, "<|im_end|>"),
    "qwen3": ("bytes", ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>"), QWEN_3, "<|im_end|>"),
    "mistral-1": ("first", ("<s>", "</s>"), MISTRAL_1, "</s>"),
    "mistral-2": ("first", ("<s>", "</s>"), MISTRAL_2, "</s>"),
    "mistral-3": ("first", ("<s>", "</s>", "[INST]", "[/INST]"), MISTRAL_3, "</s>"),
    "mistral-3, space before each piece": ("always", ("<s>", "</s>", "[INST]", "[/INST]"), MISTRAL_3, "</s>"),
    "llama-2": ("first", ("<s>", "</s>"), LLAMA_2, "</s>"),
    "zephyr": ("first", ("<s>", "</s>"), ZEPHYR, "</s>"),
    "glm-4": ("bytes", ("<|endoftext|>", "<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>"), GLM_4, "<|user|>"),
    "glm-4.5": (
        "bytes",
        ("<|endoftext|>", "<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<think>", "</think>"),
        GLM_4_5,
        "<|user|>",
    ),
    "mistral-small": ("bytes", ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), MISTRAL_SMALL, "</s>"),
    "vicuna, bytes": ("bytes", ("<s>", "</s>"), VICUNA, "</s>"),
    "vicuna": ("first", ("<s>", "</s>"), VICUNA, "</s>"),
    "phi-3": ("first", ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"), PHI_3, "<|end|>"),
}
_TEXT = [
    "The language is german.",
    "What language is spoken?",
    "user assistant system model",
    'Describe <AUDIO></AUDIO> {"language": "de"}',
] * 9


def tokenizer_of(kind: str, marks: tuple[str, ...], template: str | None) -> Any:
    """A small tokenizer. `kind`: byte-level BPE, or SentencePiece with a space before the first word, before each piece, or nowhere."""
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=[*marks], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=kind)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(steps)
        of_bytes = [f"<0x{number:02X}>" for number in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", *marks, *of_bytes], show_progress=False)
    tokenizer.train_from_iterator(_TEXT, trainer)
    if marks[0] in ("<s>", "<bos>", "<|begin_of_text|>"):
        begin = (marks[0], tokenizer.token_to_id(marks[0]))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{marks[0]} $A", special_tokens=[begin])
    out = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=marks[0], eos_token=marks[1])
    out.chat_template = template
    return out
