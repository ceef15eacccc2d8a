"""Writes the HTML report of published shards, to look at before training: one self-contained page without scripts or network access.

Keys, metadata and rejection reasons are untrusted text: Jinja2 escapes all of it. Pictures are drawn from numbers. Sounds are embedded only
after their digest was checked and they were decoded.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from speechkd.core.files import write_text
from speechkd.data.audio.clips import RATE, encode_flac
from speechkd.data.reader import Reader
from speechkd.data.shards.index import ShardSet
from speechkd.data.statistics import QUIET_DB, ClipLevel, ShardStatistics, column_facts, measure, token_lengths
from speechkd.evaluation.report_charts import histogram, waveform

OFF_ZERO, ZEROS_S = 0.02, 1.0
"""Clips are counted whose mean is this share of full scale off zero, or that hold so many seconds of nothing but zeros"""
PLAYERS, PLAYER_SECONDS = 12, 20.0
COLUMNS = 8
"""Number of teacher columns with a histogram of token lengths"""


@dataclass(frozen=True, slots=True)
class Player:
    """One clip to listen to."""

    key: str
    split: str
    level: ClipLevel
    metadata: dict[str, str]
    sound: str
    """data URI"""
    wave: Markup
    spectrogram: str
    """data URI"""
    cut: bool
    """whether only its first PLAYER_SECONDS are embedded"""


def write_shards_report(shards: ShardSet, out: Path) -> Path:
    """Write the page about a published version to `out` and return it. Raises DataError for bytes that do not match their digest."""
    statistics = measure(shards)
    environment = Environment(
        loader=PackageLoader("speechkd.evaluation", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"hours": _hours, "percent": lambda share: f"{100 * share:.1f} %", "db": _db}
    page = environment.get_template("shards_report.html.j2").render(**_content(shards, statistics))
    write_text(out, page)
    return out


def _content(shards: ShardSet, statistics: ShardStatistics) -> dict[str, Any]:
    manifest = shards.manifest
    facts = column_facts(shards)
    return {
        "name": f"{shards.dataset}/{shards.version}",
        "card": shards.card,
        "digest": shards.digest,
        "grows": manifest.get("grows"),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "totals": manifest["totals"],
        "shards": shards.shards,
        "input": manifest["input"],
        "quarantined": manifest["quarantined"],
        "statistics": statistics,
        "percentiles": _percentiles(statistics.seconds_N),
        "durations": histogram("seconds", statistics.seconds_N) if len(statistics.seconds_N) else None,
        "levels": _level_facts(statistics.levels),
        "loudness": histogram("level", _finite([level.level_db for level in statistics.levels])) if statistics.levels else None,
        "silence": histogram("silence", [100 * level.silent for level in statistics.levels]) if statistics.levels else None,
        "quiet_db": QUIET_DB,
        "columns": facts,
        "lengths": {name: histogram(name, token_lengths(shards, name)) for name in list(facts)[:COLUMNS] if facts[name]["examples"]},
        "players": _players(shards, statistics),
    }


def _percentiles(seconds_N: np.ndarray) -> list[tuple[str, float]]:
    if not len(seconds_N):
        return []
    names = ("shortest", "5 %", "median", "95 %", "longest")
    return list(zip(names, np.percentile(seconds_N, [0, 5, 50, 95, 100]).tolist(), strict=True))


def _level_facts(levels: list[ClipLevel]) -> dict[str, Any]:
    finite = _finite([level.level_db for level in levels])
    return {
        "clips": len(levels),
        "median_db": float(np.median(finite)) if finite else None,
        "spread_db": float(np.percentile(finite, 95) - np.percentile(finite, 5)) if finite else None,
        "silent": float(np.mean([level.silent for level in levels])) if levels else None,
        "clipped": sum(level.clipped > 0 for level in levels),
        "off_zero": sum(abs(level.dc) > OFF_ZERO for level in levels),
        "zeros": sum(level.zeros > ZEROS_S for level in levels),
        "dead": sum(not math.isfinite(level.level_db) for level in levels),
    }


def _players(shards: ShardSet, statistics: ShardStatistics) -> list[Player]:
    """Players for the most extreme clips (clipping, silence, level, length), then for others at even steps through the measured clips."""
    levels = statistics.levels
    if not levels:
        return []
    marked = [
        max(levels, key=lambda level: level.clipped),
        max(levels, key=lambda level: level.silent),
        min(levels, key=lambda level: level.level_db),
        max(levels, key=lambda level: level.level_db),
        min(levels, key=lambda level: level.seconds),
        max(levels, key=lambda level: level.seconds),
    ]
    order = {level.row: level for level in [*marked, *levels[:: max(1, len(levels) // PLAYERS)], *levels]}
    reader = Reader(shards)
    splits = {level.row: split for level, split in zip(levels, statistics.level_splits, strict=True)}
    return [_player(shards, reader, level, splits[level.row]) for level in list(order.values())[:PLAYERS]]


def _player(shards: ShardSet, reader: Reader, level: ClipLevel, split: str) -> Player:
    samples_T = reader.audio(level.row)
    assert samples_T is not None
    cut = level.seconds > PLAYER_SECONDS
    _, row, rows = shards.rows.find(level.row)
    shown_T = samples_T[: int(PLAYER_SECONDS * RATE)]
    return Player(
        key=rows["key"][row],
        split=split,
        level=level,
        metadata={name: str(value) for name, value in reader.metadata(level.row).items()},
        sound=f"data:audio/flac;base64,{base64.b64encode(encode_flac(shown_T)).decode()}",
        wave=waveform(shown_T),
        spectrogram=f"data:image/png;base64,{base64.b64encode(spectrogram(shown_T)).decode()}",
        cut=cut,
    )


def spectrogram(samples_T: np.ndarray, columns: int = 320) -> bytes:
    """Spectrogram PNG, 0 to 8 kHz: 32 ms Hann windows, 80 dB range below the loudest point."""
    from matplotlib.image import imsave

    size = 512
    padded = np.pad(samples_T, (0, max(0, size - len(samples_T))))
    starts = np.linspace(0, len(padded) - size, min(columns, 1 + (len(padded) - size) // 64)).astype(np.int64)
    frames = padded[starts[:, None] + np.arange(size)] * np.hanning(size)
    power = np.square(np.abs(np.fft.rfft(frames, axis=1)))[:, :-1]
    power = power.reshape(len(power), -1, 2).mean(axis=2)
    level = 10 * np.log10(power + 1e-12)
    picture = io.BytesIO()
    top = float(level.max())
    imsave(picture, level.T, format="png", cmap="magma", origin="lower", vmin=top - 80, vmax=top, metadata={"Software": "speechkd"})
    return picture.getvalue()


def _finite(values: list[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 10 else f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _db(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.1f} dB"
