"""Lhotse cut manifests, read without lhotse: one JSON object per line. https://lhotse.readthedocs.io/en/latest/cuts.html"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from speechkd.core.errors import InputError
from speechkd.core.types import Scalar
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources import paths, stated
from speechkd.data.sources.base import Item, Unmatched
from speechkd.data.sources.paths import AudioFolder, AudioPaths
from speechkd.data.sources.rows import is_number, read_files, read_jsonl, scalars
from speechkd.data.storage.names import clean_name


class LhotseConfig(AudioPaths):
    """Single-channel cuts of recordings in plain files. Mixed and padded cuts, and cuts with transforms, go to quarantine."""

    kind: Literal["lhotse"]
    cuts: paths.PathBySplit
    """cuts .jsonl or .jsonl.gz, or split -> cuts"""
    split: str = "train"


class LhotseSource:
    """Reads lhotse cut sets."""

    Config = LhotseConfig

    def __init__(self, config: LhotseConfig, data_root: Path) -> None:
        self.field_names: set[str] = set()
        self.unmatched: list[Unmatched] = []
        self.audio = AudioFolder(data_root, config)
        self.files = stated.files_by_split(config, config.cuts, data_root, "source.cuts")

    def items(self) -> list[Item]:
        """All cuts, sorted by key. Raises InputError naming file and line."""
        items = []
        for split, path in self.files:
            for number, cut in read_cuts(path):
                items.append(Item(cut_key(cut, f"{path}, line {number}"), split, cut_fields(cut), _payload(cut), cut["id"]))
        self.unmatched = self.audio.unlisted(item.payload.get("audio", "") for item in items)
        return sorted(items, key=lambda item: item.key)

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Decode each cut's part of its recording."""
        for item in items:
            yield Rejected(item.payload["problem"]) if "problem" in item.payload else next(read_files([item], self.audio.find))


def read_cuts(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of a manifest, decompressed as a stream. Raises InputError."""
    if path.suffix not in (".jsonl", ".gz", ".json"):
        raise InputError(f"cuts must be .jsonl or .jsonl.gz, given `{path}`")
    try:
        yield from read_jsonl(path, "", gzip.open(path, "rb") if path.suffix == ".gz" else None)
    except gzip.zlib.error as error:  # type: ignore[attr-defined]
        raise InputError(f"cannot unpack `{path}`: {error}") from None


def cut_key(cut: dict[str, Any], where: str) -> str:
    """The cut's id as a key. Raises InputError for an object that is no cut, or whose supervisions have another form than lhotse's."""
    if not isinstance(cut.get("id"), str) or not cut["id"]:
        raise InputError(f"a cut has an `id`; this object has {', '.join(sorted(cut)) or 'nothing'} ({where})")
    segments = cut.get("supervisions") or []
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        raise InputError(f"`supervisions` must be a list of objects, given `{str(segments)[:40]}` ({where})")
    for segment in segments:
        if segment.get("start") is not None and not is_number(segment["start"]):
            raise InputError(f"a supervision's `start` must be seconds, given `{str(segment['start'])[:40]}` ({where})")
    for holder in (cut, *segments):
        if not isinstance(holder.get("custom") or {}, dict):
            raise InputError(f"`custom` must be an object, given `{str(holder['custom'])[:40]}` ({where})")
    return clean_name(cut["id"])


def cut_fields(cut: dict[str, Any]) -> dict[str, Scalar]:
    """Fields of a cut and its supervisions. Texts are joined in order of time; other fields are kept if all supervisions agree."""
    segments = sorted(cut.get("supervisions") or [], key=lambda s: float(s.get("start") or 0))
    out = scalars(cut.get("custom") or {})
    rows = [scalars({k: v for k, v in s.items() if k in ("speaker", "gender", "language")} | (s.get("custom") or {})) for s in segments]
    for name in sorted({name for row in rows for name in row}):
        values = {row.get(name) for row in rows}
        value = values.pop()
        if not values and value is not None:
            out[name] = value
    texts = [s["text"] for s in segments if isinstance(s.get("text"), str) and s["text"]]
    if texts:
        out["text"] = " ".join(texts)
    if len(speakers := {s["speaker"] for s in segments if isinstance(s.get("speaker"), (str, int)) and s["speaker"]}) > 1:
        out["n_speakers"] = len(speakers)
    return out


def cut_problem(cut: dict[str, Any]) -> str | None:
    """Why a cut is not a single channel of one unmodified recording, or None."""
    recording = cut.get("recording")
    if cut.get("type") not in ("MonoCut", None) or not isinstance(recording, dict):
        return f"is a {cut.get('type')}; only cuts of one channel of one recording are read"
    if recording.get("transforms"):
        return "has transforms that only lhotse can run: save its audio first (save_audios)"
    return None


def _payload(cut: dict[str, Any]) -> dict[str, Any]:
    if problem := cut_problem(cut):
        return {"problem": problem}
    channel = cut.get("channel", 0)
    sources = cut["recording"].get("sources") or []
    for source in sources if isinstance(sources, list) else []:
        if not isinstance(source, dict) or not isinstance(source.get("channels"), list) or channel not in source["channels"]:
            continue
        if source.get("type") != "file":
            return {"problem": f"its recording is of type `{source.get('type')}`: only files are read, nothing is run or fetched"}
        span = {"audio": str(source.get("source")), "channel": source["channels"].index(channel), "seconds": cut.get("duration")}
        start = cut.get("start", 0)
        if not all(is_number(value) and value >= 0 for value in (start, span["seconds"])):
            return {"problem": "has no start and duration in seconds"}
        return {**span, "start": float(start), "seconds": float(span["seconds"])}
    return {"problem": f"no source of its recording holds channel {channel}"}
