"""Teacher columns of a recipe: the spec that identifies each one, and the text of a column as input to another model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from speechkd.core.errors import InputError
from speechkd.core.files import digest
from speechkd.data.columns.column import Column
from speechkd.data.columns.spec import ColumnSpec
from speechkd.data.plan.plan import PlanSource
from speechkd.data.reader import Reader
from speechkd.models.prompt import Prompt, tokenizer_digest
from speechkd.stages.inputs.corpora import Corpus
from speechkd.teachers.base import TeacherConfig
from speechkd.teachers.prompts import PromptConfig


def column_spec(role: str, config: TeacherConfig, prompt_config: PromptConfig, prompt: Prompt) -> ColumnSpec:
    """The settings that identify the column of a teacher role. Its name ends in a digest of them: other settings give another column."""
    identity, signals = config.identity(), config.signals_config()
    teacher = {name: value for name, value in identity.items() if name != "signals"}
    if (model := config.fingerprint()) is not None:
        teacher["fingerprint"] = model
    settings = prompt_config.identity()
    for name in ("template", "text", "transcript"):  # the template's text counts, not its path; the other two concern the student alone
        settings.pop(name, None)
    tokenizer = tokenizer_digest(prompt.tokenizer)
    settings_digest = digest([teacher, signals.model_dump(mode="json"), settings, prompt.text, tokenizer])[:8]
    return ColumnSpec(
        name=f"{role}-{identity['backend']}-{Path(prompt_config.template).stem}-{settings_digest}",
        teacher=teacher,
        prompt=prompt.text,
        tokenizer=tokenizer,
        vocab_size=max(len(prompt.tokenizer), config.output_width()),
        signals=signals,
        settings=settings,
    )


def other_column(corpus: Corpus, role: str, spec: ColumnSpec) -> str:
    """One line for the user: this corpus lacks the column, and how the most similar column of the same role differs."""
    found = []
    for name in corpus.shards.column_names():
        if name.startswith(f"{role}-"):
            changes = corpus.shards.column(name).spec.differs_from(spec)
            found.append((len(changes), name, changes))
    todo = "run `speechkd teach` on this recipe"
    if not found:
        return f"corpus `{corpus.card.name}` lacks column `{spec.name}` of teacher `{role}`: {todo}"
    _, name, changes = min(found)
    return f"corpus `{corpus.card.name}` has column `{name}` of teacher `{role}`, made with {'; '.join(changes)}: {todo}, or change it back"


class ColumnText:
    """The text of a published column: for each clip the first answer that ended by itself."""

    def __init__(self, corpus: Corpus, name: str, where: str) -> None:
        """`where`: the recipe key that names the column. Raises InputError for a column that is not there."""
        if name not in corpus.shards.column_names():
            have = ", ".join(corpus.shards.column_names()) or "none"
            raise InputError(f"corpus `{corpus.card.name}` has no column `{name}` ({where}); it has: {have}")
        self.column: Column = corpus.shards.column(name)
        table = self.column.read_index(["sample", "stop"])
        whole_N = np.flatnonzero([stop == "eos" for stop in table["stop"].to_pylist()])
        sample_N, first_N = np.unique(table["sample"].to_numpy()[whole_N], return_index=True)
        self._row_N = np.full(len(corpus.shards), -1, dtype=np.int64)
        self._row_N[sample_N] = whole_N[first_N]

    def keep(self, source: PlanSource, reader: Reader, where: str) -> PlanSource:
        """The examples of `source` whose clips have a text here; the digest of this column becomes part of the plan's.

        `where` names the stream and corpus in messages. Raises InputError where no clip has a text.
        """
        assert reader.column is not None
        kept = source.keep(self._row_N[reader.column.read_index(["sample"])["sample"].to_numpy()] >= 0)
        if not len(kept):
            raise InputError(
                f"column `{self.column.name}` has no whole answer for any clip of {where}: fill it with `speechkd teach --retry-failed`"
            )
        return replace(kept, digest=digest([kept.digest, self.column.digest]))

    def text(self, sample: int) -> str:
        """The text of clip `sample`, which must have one."""
        text: str = self.column.read(int(self._row_N[sample])).text
        return text

    def get(self, sample: int) -> str | None:
        """The text of clip `sample`, or None."""
        return self.text(sample) if self._row_N[sample] >= 0 else None
