"""What a line of the journal may hold. Readers skip a torn or damaged line."""

from __future__ import annotations

import json
from typing import Any

STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")
LATEST = "latest"
"""Key that marks a record whose values replace earlier ones of the same step"""
MEAN_SCORE = "eval/mean/student"
"""Metric by which checkpoints and exports are ranked: the student's mean held-out score over all tasks, higher is better"""

Record = dict[str, Any]
_TEXT_KEYS = {"artifact": ("path",), "dataset": ("name", "digest"), "checkpoint": ("path", "digest"), "export": ("path", "digest", "model")}
"""Kind -> keys that hold text"""


def parse_record(line: bytes) -> Record | None:
    """The record of one line; None for a torn or damaged one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("time_ms"), int):
        return None
    return record if _is_valid(record) else None


def _is_valid(record: Record) -> bool:
    kind, values, step = record.get("kind"), record.get("values"), record.get("step")
    good_step = isinstance(step, int) and abs(step) < 1 << 62
    if kind == "metric":
        on = record.get("dataset", ["", ""])
        good_dataset = isinstance(on, list) and len(on) == 2 and all(isinstance(text, str) for text in on)
        return good_step and good_dataset and isinstance(values, dict) and all(map(_is_number, values.values()))
    if kind in ("param", "tag"):
        return isinstance(values, dict) and all(isinstance(value, str) for value in values.values())
    if kind == "status":
        return record.get("status") in STATUSES
    if kind not in _TEXT_KEYS or not all(isinstance(record.get(key), str) for key in _TEXT_KEYS[kind]):
        return False
    facts = record.get("facts", {})
    with_facts = isinstance(facts, dict) and all(isinstance(value, str) for value in facts.values())
    return with_facts and (kind in ("artifact", "dataset") or good_step) and (kind != "checkpoint" or isinstance(record.get("kept"), bool))


def _is_number(value: object) -> bool:
    return isinstance(value, float) or value in ("NaN", "Infinity", "-Infinity")
