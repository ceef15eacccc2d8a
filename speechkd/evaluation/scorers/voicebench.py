"""VoiceBench's parser for lettered choices: templates, then a letter alone, then a letter drawn at random.

The draw makes a model that never answers score 25 %. It is reproduced because published figures hold it, and labelled in the parser's name;
here it is seeded by the clip's key, so that it is the same at every grading. The templates are the benchmark's own: they are read from its
`mcq.py` (`evaluation.parsers.voicebench`) as a literal, and nothing in that file is executed.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

from speechkd.core.errors import InputError
from speechkd.core.seeds import derive
from speechkd.core.text import read_text
from speechkd.evaluation.scorers import Grade
from speechkd.evaluation.scorers.parsers import Asked, ParsersConfig

LETTERS = ("A", "B", "C", "D")
HOLE = "[CHOICE]"
_MAX_BYTES = 1 << 20


@lru_cache(maxsize=4)
def read_templates(path: Path) -> tuple[str, ...]:
    """The first list of texts in a Python file of which most have the hole, as its syntax tree gives it. Raises InputError without one."""
    text = read_text(path, limit=_MAX_BYTES)
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise InputError(f"`{path}` is no Python file: {error} (evaluation.parsers.voicebench)") from None
    for node in nodes:
        if isinstance(node, ast.List):
            texts = [item.value for item in node.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)]
            if texts and 2 * sum(HOLE in text for text in texts) > len(texts) == len(node.elts):
                return tuple(texts)
    raise InputError(
        f"`{path}` holds no list of templates with `{HOLE}`: name VoiceBench's src/evaluator/mcq.py (evaluation.parsers.voicebench)"
    )


def letter(answer: str, templates: tuple[str, ...]) -> str | None:
    """The letter that an answer states: that of the first template that is found, else one that the answer begins with; None: neither."""
    text = answer.lower()
    if text.startswith(("<1>", "<2>", "<3>")):
        text = text[3:].strip()
    small = [name.lower() for name in LETTERS]
    for template in templates:
        for name in small:
            if template.replace(HOLE, name) in text:
                return name.upper()
    for name in small:
        if text == name or text.startswith(tuple(name + sign for sign in ".,:)")):
            return name.upper()
    # The released code goes on with three texts that state A; the first two of them are found before wherever templates are whole.
    return "A" if any(text_of_a in text for text_of_a in ("would be a.", 'would be "a.')) else None


def grade(answer: str, asked: Asked, config: ParsersConfig) -> Grade | None:
    """For choices that are letters A to D, where the recipe names the templates; unparsable answers are counted, and drawn for."""
    lettered = bool(asked.choices) and all(choice.strip().upper() in LETTERS for choice in asked.choices)
    if asked.kind != "choice" or config.voicebench is None or not lettered:
        return None
    stated = letter(answer, read_templates(Path(config.voicebench)))
    given = stated or LETTERS[derive(0, "voicebench", asked.key) % len(LETTERS)]
    hit = int(given == asked.reference.strip().upper())
    return Grade(hit, 1, stated is not None, substitutions=1 - hit)
