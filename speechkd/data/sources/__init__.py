"""Readers of raw corpora: one module and one table entry per layout."""

from speechkd.core.table import Table
from speechkd.data.sources.base import Source

SOURCES: Table[type[Source]] = Table(
    "source",
    {
        "csv": "speechkd.data.sources.csv_table:CsvSource",
        "espeak": "speechkd.data.sources.espeak:EspeakSource",
        "folder": "speechkd.data.sources.folder:FolderSource",
        "hf_disk": "speechkd.data.sources.hf_disk:HfDiskSource",
        "jsonl": "speechkd.data.sources.jsonl:JsonlSource",
        "kaldi": "speechkd.data.sources.kaldi:KaldiSource",
        "lhotse": "speechkd.data.sources.lhotse_cuts:LhotseSource",
        "messages": "speechkd.data.sources.messages:MessagesSource",
        "nemo": "speechkd.data.sources.nemo:NemoSource",
        "shar": "speechkd.data.sources.lhotse_shar:SharSource",
        "tts": "speechkd.data.sources.tts:TtsSource",
        "webdataset": "speechkd.data.sources.webdataset:WebdatasetSource",
    },
    group="speechkd.sources",
)
