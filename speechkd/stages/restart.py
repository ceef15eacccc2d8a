"""Restart a training that ended, or stop? `python -m speechkd.stages.restart RUN CODE` prints the answer with its evidence.

Exit 0: restart; 1: stop. A restart must bring the run forward: `--max-restarts` of them without a new checkpoint stop the loop, whatever
the reason, for a job that fails at once would else be queued for ever. Wrong input (2) is never tried again.

A job has seconds between its last checkpoint and its time limit: this reads no checkpoint and loads no torch where a launcher has written
how far training came.

    RUN/restarts.jsonl    one JSON object a line: {"event": "start" | "end" | "restart" | "stop", "time", "step", "code", "reason", ...}
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from speechkd.core.errors import EXIT_INPUT, EXIT_REQUEUE
from speechkd.tracking.journal import JOURNAL, Journal

RESTARTS = "restarts.jsonl"
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to start again, and why, in one line."""

    restart: bool
    evidence: str

    def __str__(self) -> str:
        return f"{'restart' if self.restart else 'stop'}: {self.evidence}"


def decide(history: Sequence[Event], code: int, step: int, max_restarts: int = 3) -> Decision:
    """Pure: from what happened so far, the exit code of the last start, and the newest committed step.

    A run of which not even a start is in the history (it failed while it was prepared) is judged by the restarts that were decided.
    """
    reason = _reason(history, code)
    if code == 0:
        return Decision(False, f"finished at step {step}")
    if code == EXIT_INPUT:
        return Decision(False, f"{reason}: the input is wrong, and would be again")
    tries = _restarts_at(history, step)
    if tries >= max_restarts:
        kind = "end" if any(event["event"] == "end" for event in history) else "restart"
        codes = [event["code"] for event in history if event["event"] == kind and event["step"] == step][-tries:] or [code]
        return Decision(
            False, f"{tries} restarts without a new step since step {step} (codes {', '.join(map(str, codes))}; last: {reason})"
        )
    began = next((event["step"] for event in reversed(history) if event["event"] == "start"), 0)
    if step > began:
        return Decision(True, f"{reason} at step {step}, {step - began} steps since the last start")
    return Decision(True, f"{reason} at step {step} without a new step, {tries} of {max_restarts} restarts from there used")


def _restarts_at(history: Iterable[Event], step: int) -> int:
    """Restarts that began at `step` and brought no checkpoint; SLURM's own count too, which nobody decided here."""
    history = list(history)
    starts = [event["step"] for event in history if event["event"] == "start"]
    here = len(list(takewhile(lambda at: at == step, reversed(starts))))
    first = here == len(starts)  # the first start of all is no restart
    decided = [event["step"] for event in history if event["event"] == "restart"]
    return max(here - (1 if first and here else 0), len(list(takewhile(lambda at: at == step, reversed(decided)))))


def _reason(history: Sequence[Event], code: int) -> str:
    if code == EXIT_REQUEUE:
        return f"exit {code} (stopped cleanly)"
    last = next((event for event in reversed(history) if event["event"] in ("start", "end")), None)
    if last is None:
        return f"exit {code}"
    if last["event"] == "start":
        return f"exit {code} (no launcher lived to say why)"
    return f"exit {code} ({last['reason']})" if last["code"] == code else f"exit {code}"


def read_history(run: Path) -> list[Event]:
    """All readable lines of RUN/restarts.jsonl; a kill may tear the last one."""
    events = []
    try:
        lines = (run / RESTARTS).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and event.get("event") in ("start", "end", "restart", "stop"):
            if all(isinstance(event.get(name), int) for name in ("step", *(["code"] if event["event"] != "start" else []))):
                events.append(event)
    return events


def record_start(run: Path, step: int, ranks: int, nodes: int) -> int:
    """A launcher starts the ranks; returns how many started before it in this run."""
    before = sum(event["event"] == "start" for event in read_history(run))
    names = {"job": "SLURM_JOB_ID", "node_list": "SLURM_JOB_NODELIST"}
    slurm = {key: os.environ[name] for key, name in names.items() if name in os.environ}
    _append(run, {"event": "start", "step": step, "ranks": ranks, "nodes": nodes, "host": socket.gethostname(), **slurm})
    return before


def record_end(run: Path, step: int, code: int, reason: str) -> None:
    """The ranks ended, with a checkpoint of `step` as the newest."""
    _append(run, {"event": "end", "step": step, "code": code, "reason": reason})


def _append(run: Path, event: Event) -> None:
    line = json.dumps({"time": round(time.time(), 3), **event}, ensure_ascii=False)
    with (run / RESTARTS).open("ab") as stream:
        torn = stream.tell() > 0 and not (run / RESTARTS).read_bytes().endswith(b"\n")
        stream.write((b"\n" if torn else b"") + line.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _newest_whole(run: Path) -> int:
    from speechkd.stages.saved_steps import newest_whole  # loads torch

    return newest_whole(run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the decision, record it in the history, and in the journal where it stops a run that failed."""
    parser = argparse.ArgumentParser(prog="python -m speechkd.stages.restart", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("code", type=int, help="exit code of the training that ended")
    parser.add_argument("--max-restarts", type=int, default=3, help="restarts without a new step that stop the loop")
    given = parser.parse_args(arguments)
    history = read_history(given.run)
    step = history[-1]["step"] if history and history[-1]["event"] == "end" else _newest_whole(given.run)
    decision = decide(history, given.code, step, given.max_restarts)
    print(decision, flush=True)
    if given.run.is_dir():
        event = "restart" if decision.restart else "stop"
        _append(given.run, {"event": event, "step": step, "code": given.code, "reason": decision.evidence})
        if not decision.restart and given.code and (given.run / JOURNAL).is_file():
            journal = Journal(given.run / JOURNAL)
            journal.tags({"stopped": decision.evidence})
            journal.close()
    return 0 if decision.restart else 1


if __name__ == "__main__":
    sys.exit(main())
