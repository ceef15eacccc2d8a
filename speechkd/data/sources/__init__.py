"""Where raw corpora come from: one file per layout, one table line each."""

from speechkd.core.table import Table
from speechkd.data.sources.base import Source

SOURCES: Table[type[Source]] = Table(
    "source",
    {
        "espeak": "speechkd.data.sources.espeak:EspeakSource",
        "jsonl": "speechkd.data.sources.jsonl:JsonlSource",
    },
)
