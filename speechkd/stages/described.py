"""Another column's words about the clips of a corpus, for live teachers that read them (textualised audio, arXiv 2509.18579)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from speechkd.core.errors import InputError
from speechkd.core.files import digest
from speechkd.data.columns.column import Column
from speechkd.data.plan.plan import PlanSource
from speechkd.data.reader import Reader
from speechkd.stages.inputs import Corpus


class Described:
    """The first whole answer that a published column has for each clip."""

    def __init__(self, corpus: Corpus, name: str) -> None:
        """Raises InputError for a column that is not there."""
        if name not in corpus.shards.column_names():
            have = ", ".join(corpus.shards.column_names()) or "none"
            raise InputError(f"corpus `{corpus.card.name}` has no column `{name}`, which a live teacher reads (`live`); it has: {have}")
        self.column: Column = corpus.shards.column(name)
        table = self.column.columns(["sample", "stop"])
        whole_N = np.flatnonzero([stop == "eos" for stop in table["stop"].to_pylist()])
        sample_N, first_N = np.unique(table["sample"].to_numpy()[whole_N], return_index=True)
        self._row_N = np.full(len(corpus.shards), -1, dtype=np.int64)
        self._row_N[sample_N] = whole_N[first_N]

    def keep(self, source: PlanSource, reader: Reader, where: str) -> PlanSource:
        """The examples of `source` whose clips are described; which column describes them is part of what the plan stands on.

        Raises InputError where none is.
        """
        assert reader.column is not None
        kept = source.keep(self._row_N[reader.column.columns(["sample"])["sample"].to_numpy()] >= 0)
        if not len(kept):
            raise InputError(f"column `{self.column.name}` has no whole answer for any clip of {where}")
        return replace(kept, digest=digest([kept.digest, self.column.digest]))

    def text(self, sample: int) -> str:
        """What the column says of a clip that it describes."""
        text: str = self.column.read(int(self._row_N[sample])).text
        return text
