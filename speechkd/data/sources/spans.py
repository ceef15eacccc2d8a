"""Rows that are parts of longer recordings: which fields say where a part begins, where it ends, and on which channel it is.

A list of utterances of a call names the call's recording in many rows. Without these keys each row would be the whole call.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from pydantic import model_validator

from speechkd.core.config import Config
from speechkd.core.errors import InputError
from speechkd.data.sources.base import Item, Unmatched

STARTS = frozenset(
    "start starttime starts startsec startsecs startseconds startms startsample startoffset begin begintime beginsec beginning onset "
    "offset segmentstart segmentbegin utterancestart timestart tstart".split()
)
"""Names, as letters alone, of fields that say where a row's part of a recording begins"""
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
_CHANNELS = {"a": 0, "b": 1, "l": 0, "r": 1, "left": 0, "right": 1}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class Numbers(Config):
    """How numbers are written as text."""

    decimal: Literal[".", ","] = "."
    """decimal mark of numbers that are text"""


class SpanFields(Numbers):
    """Fields that make a row a part of its recording. Times are as `times` says, or `hh:mm:ss.mmm`."""

    start_field: str = ""
    """field with the beginning of the row's part of its recording; empty: every row is a whole file"""
    end_field: str = ""
    """field with its end, or"""
    duration_field: str = ""
    """field with its duration; neither: to the end of the recording"""
    channel_field: str = ""
    """field with its channel: a number, A and B, or left and right"""
    times: Literal["seconds", "milliseconds", "samples"] = "seconds"
    """unit of times that are plain numbers; samples are those of the recording's own rate"""
    first_channel: Literal[0, 1] | None = None
    """number of the first channel; must be given where no channel is 0, for then they may count from 0 or from 1"""

    @model_validator(mode="after")
    def _one_end(self) -> SpanFields:
        if self.end_field and self.duration_field:
            raise ValueError("a part has either `end_field` or `duration_field`, not both")
        if (self.end_field or self.duration_field) and not self.start_field:
            raise ValueError(f"`{'end_field' if self.end_field else 'duration_field'}` needs `start_field`: where the part begins")
        return self

    @property
    def span_fields(self) -> list[str]:
        """The fields that are named."""
        return [name for name in (self.start_field, self.end_field, self.duration_field, self.channel_field) if name]


def span_of_row(row: Mapping[str, Any], config: SpanFields) -> dict[str, Any]:
    """The part of the recording that a row is, as a payload: start, seconds, channel and unit; `problem` where its fields do not say it."""
    out: dict[str, Any] = {}
    try:
        if config.start_field:
            start = _time(row, config.start_field, config)
            out = {"start": start} | ({"unit": "samples"} if config.times == "samples" else {})
            if config.duration_field:
                out["seconds"] = _time(row, config.duration_field, config)
            elif config.end_field:
                end = _time(row, config.end_field, config)
                out["seconds"] = round(end - start, 9)
            if start < 0 or out.get("seconds", 1) <= 0:
                raise ValueError(f"must begin at 0 or later and end after it begins: `{start:g}` for `{out.get('seconds', 1):g}`")
        if config.channel_field:
            out["channel"] = _channel(row, config)
    except ValueError as error:
        return {"problem": str(error)}
    return out


def _time(row: Mapping[str, Any], field: str, config: SpanFields) -> float:
    value = row.get(field)
    if isinstance(value, str) and (clock := _CLOCK.fullmatch(value.strip())) and config.times != "samples":
        hours, minutes, seconds = clock.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
    number = _number(value, config.decimal)
    if number is None:
        shown = "nothing" if value in (None, "") else f"`{str(value)[:40]}`"
        forms = "a whole number of samples" if config.times == "samples" else f"{config.times} or hh:mm:ss.mmm"
        raise ValueError(f"field `{field}` must be {forms} with the decimal mark `{config.decimal}`, is {shown}")
    return number / 1000 if config.times == "milliseconds" else number


def _number(value: Any, decimal: str) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if -1e15 < value < 1e15 else None
    text = value.strip() if isinstance(value, str) else ""
    if decimal == ",":
        text = "" if "." in text else text.replace(",", ".", 1)
    return float(text) if _NUMBER.fullmatch(text) and len(text) < 40 else None


def _channel(row: Mapping[str, Any], config: SpanFields) -> int:
    value = row.get(config.channel_field)
    if isinstance(value, str) and value.strip().casefold() in _CHANNELS:
        return _CHANNELS[value.strip().casefold()]
    number = _number(value, config.decimal)
    first = config.first_channel or 0
    if number is None or number != int(number) or not first <= number < 1000:
        raise ValueError(f"field `{config.channel_field}` must be a channel from {first} on, A, B, left or right, is `{str(value)[:40]}`")
    return int(number) - first


def channel_numbers(row: Mapping[str, Any], config: SpanFields) -> set[float]:
    """The number in a row's channel field; none where there is no such field, or another value."""
    number = _number(row.get(config.channel_field), config.decimal) if config.channel_field else None
    return set() if number is None else {number}


def check_channels(numbers: Collection[float], config: SpanFields) -> None:
    """Refuse channel numbers without a 0 until the card says from where they count: taken wrongly, each row would be the other speaker."""
    if config.first_channel is None and numbers and 0 not in numbers:
        listed = ", ".join(f"{number:g}" for number in sorted(numbers)[:8])
        raise InputError(
            f"field `{config.channel_field}` has the channels {listed}: set `first_channel: 1` if they count from 1, or `first_channel: 0` "
            "(card: source.channel_field)"
        )


def shared_recordings(items: Sequence[Item], config: Config | None = None) -> list[Unmatched]:
    """Says that several items are the whole of one file. Refused where a field that nobody reads says which part each of them is.

    `config`: of a source that has the keys of `SpanFields`.
    """
    whole = [item for item in items if item.payload.get("audio") and "start" not in item.payload and "problem" not in item.payload]
    uses = Counter((item.payload["audio"], item.payload.get("channel")) for item in whole)
    shared = [item for item in whole if uses[item.payload["audio"], item.payload.get("channel")] > 1]
    if not shared:
        return []
    files = {item.payload["audio"] for item in shared}
    if isinstance(config, SpanFields) and "start_field" not in config.model_fields_set:
        _refuse_unread_times(shared, len(files))
    line = f"{len(files)} files serve {len(shared)} items, each as a whole, e.g. `{str(shared[0].payload['audio'])[:80]}`"
    return [Unmatched("", len(shared), len(items), shared[0].key, limit=1.0, lookup=True, line=line)]


def _refuse_unread_times(shared: Sequence[Item], files: int) -> None:
    for field in dict.fromkeys(name for item in shared for name in item.metadata):
        if re.sub(r"[^a-z]", "", field.casefold()) not in STARTS:
            continue
        values = {(item.payload["audio"], item.metadata[field]) for item in shared if field in item.metadata}
        if len(values) > files:  # it differs between rows of one file
            raise InputError(
                f"{files} files serve {len(shared)} items, and field `{field}` says where each begins: `start_field: {field}` (and "
                '`end_field` or `duration_field`) reads the parts, `start_field: ""` says that each is the whole file (card: source)'
            )
