"""Messages and progress on standard error: a bar on a terminal, otherwise a plain line every 10 s."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

from speechkd.core.text import printable

T = TypeVar("T")
INTERVAL_S = 10.0


def say(text: str) -> None:
    """Print one line to standard error and flush. A log on a full disk is no reason to stop."""
    with suppress(OSError):
        print(printable(text), file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def progress(items: Iterable[T], label: str, total: int | None = None, start: int = 0, quiet: bool = False) -> Iterator[T]:
    """Yield `items` and show progress: a bar on a terminal, otherwise a line every 10 s and one at the end."""
    if quiet:
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, label, total, start)
    else:
        yield from _lines(items, label, total, start)


def _bar(items: Iterable[T], label: str, total: int | None, start: int) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, completed=start)
        for item in items:
            yield item
            bar.advance(task)


def _lines(items: Iterable[T], label: str, total: int | None, start: int) -> Iterator[T]:
    began = last_line = time.monotonic()
    done = start
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last_line >= INTERVAL_S:
            last_line, rate = now, (done - start) / (now - began)
            left = f", {_clock((total - done) / rate)} left" if total and rate else ""
            say(f"{label}: {done}{f'/{total}' if total else ''}, {rate:.1f}/s{left}")
    say(f"{label}: {done}{f'/{total}' if total else ''} done in {_clock(time.monotonic() - began)}")
