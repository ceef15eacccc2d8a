"""How long, how loud and how wide the clips are that a student was trained on, and whether a clip is unlike them.

Lengths are the index's, of all clips. Level and bandwidth are of a sample, decoded once when training starts, since no index holds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechkd.core.config import Config, build
from speechkd.core.files import read_json, write_json
from speechkd.data.audio.clips import RATE
from speechkd.data.reader import Reader
from speechkd.data.shards.index import ShardSet
from speechkd.data.statistics import clip_level, evenly_drawn

RANGE = "training_range.json"
"""The file, in a run folder and in an export"""
CLIPS = 64
"""Most clips to decode, over all corpora"""
BELOW_LOUDEST_DB, BAND, LOUD = -40.0, 8, 95.0
"""A band (of BAND bins) is sound if its power in its loudest frames (a percentile: hisses are short) is so far below the loudest band's at
most. What resampling from 8 kHz leaves between 5 and 8 kHz is 46 dB down (white noise, measured)"""
FRAME = 512
MORE_SECONDS, MORE_DB, MORE_HZ = 1.1, 6.0, 1000.0
"""How far outside a clip may be before it is called so: a factor of the length, decibels, hertz"""

Bounds = tuple[float, float]


class TrainingRange(Config):
    """Least and most of each, over the clips that a student was trained on."""

    seconds: Bounds
    level_db: Bounds
    """RMS of what is not silent, dBFS"""
    bandwidth_hz: Bounds
    """`bandwidth`"""


def bandwidth(samples_T: np.ndarray) -> float:
    """Hz below which a clip's sound is: the upper edge of its highest band within 40 dB of its loudest; 0 for digital silence.

    `samples_T`: float32 [T] at 16 kHz.
    """
    whole_T = samples_T[: len(samples_T) // FRAME * FRAME]  # a frame that silence fills up would end in a click, which is wide
    frames = (whole_T if len(whole_T) else np.pad(samples_T, (0, FRAME - len(samples_T)))).reshape(-1, FRAME)
    frames = frames * np.hanning(FRAME).astype(np.float32)
    power_FX = np.square(np.abs(np.fft.rfft(frames, axis=1)))[:, 1:]
    bands = np.percentile(power_FX.reshape(len(frames), -1, BAND).mean(axis=2), LOUD, axis=0)
    sound = np.flatnonzero(bands > bands.max() * 10 ** (BELOW_LOUDEST_DB / 10))
    return float((sound[-1] + 1) * BAND * RATE / FRAME) if len(sound) else 0.0


def measure_range(corpora: Sequence[tuple[ShardSet, list[str]]]) -> TrainingRange | None:
    """The range of the clips in some splits of published versions; None where there is no sound. Raises DataError for damaged bytes."""
    seconds: list[np.ndarray] = []
    sounds: list[np.ndarray] = []
    for shards, splits in corpora:
        table = shards.read_index(["split", "seconds", "audio_bytes"])
        chosen_N = pc.is_in(table["split"].cast("string"), value_set=pa.array(splits, pa.string())).to_numpy()
        rows = np.flatnonzero(chosen_N & (table["audio_bytes"].to_numpy() > 0))
        if len(rows):
            seconds.append(table["seconds"].to_numpy()[rows])
            sounds += _sounds(Reader(shards), evenly_drawn(rows, max(1, CLIPS // len(corpora)), shards.digest, "range").tolist())
    levels = [level for level in (clip_level(samples_T).level_db for samples_T in sounds) if np.isfinite(level)]
    if not levels:
        return None
    widths, lengths = [bandwidth(samples_T) for samples_T in sounds], np.concatenate(seconds)
    return TrainingRange(seconds=_bounds(lengths), level_db=_bounds(levels), bandwidth_hz=_bounds(widths))


def _sounds(reader: Reader, rows: Iterable[int]) -> list[np.ndarray]:
    return [samples_T for samples_T in map(reader.audio, rows) if samples_T is not None]


def _bounds(values: Sequence[float] | np.ndarray) -> Bounds:
    return float(min(values)), float(max(values))


def write_range(folder: Path, found: TrainingRange) -> None:
    """Keep it in a run folder, for the run's exports."""
    write_json(folder / RANGE, found.model_dump(mode="json"))


def read_range(folder: Path) -> TrainingRange | None:
    """What a run folder or an export holds of it; None where an earlier version wrote that."""
    return build(TrainingRange, read_json(folder / RANGE), str(folder / RANGE)) if (folder / RANGE).is_file() else None


def unlike(trained: TrainingRange | None, samples_T: np.ndarray) -> str | None:
    """In which ways a clip (float32 [T] at 16 kHz) is unlike those of the training, in words; None where it is not, or nobody knows."""
    if trained is None:
        return None
    level, width, seconds = clip_level(samples_T).level_db, bandwidth(samples_T), len(samples_T) / RATE
    found = []
    if not _within(seconds, trained.seconds, seconds - seconds / MORE_SECONDS):
        found.append(f"lasts {seconds:.1f} s ({_words(trained.seconds, '.1f')} s)")
    if not np.isfinite(level):
        found.append("is silent")
    elif not _within(level, trained.level_db, MORE_DB):
        found.append(f"has a level of {level:.0f} dBFS ({_words(trained.level_db, '.0f')})")
    if np.isfinite(level) and not _within(width, trained.bandwidth_hz, MORE_HZ):
        edges = (trained.bandwidth_hz[0] / 1000, trained.bandwidth_hz[1] / 1000)
        found.append(f"has sound up to {width / 1000:.1f} kHz ({_words(edges, '.1f')})")
    return f"unlike what the student was trained on (in brackets), the clip {', '.join(found)}: its answer may be wrong" if found else None


def _within(value: float, bounds: Bounds, more: float) -> bool:
    return bounds[0] - more <= value <= bounds[1] + more


def _words(bounds: Bounds, form: str) -> str:
    return f"{bounds[0]:{form}} to {bounds[1]:{form}}"
