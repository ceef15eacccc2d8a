"""A copy of checkpoints in a second place, for the day when the first is lost: a folder on another disk, or a URL."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Condition, Thread
from typing import Any

from speechkd.core.errors import DataError
from speechkd.core.files import fsync_folder, read_json
from speechkd.core.log import say
from speechkd.data.storage.store import Location, list_folder, put, reading, remove, remove_folder, sha256_of
from speechkd.engine.checkpoint import COMMIT, FILES, NAME, step_of, why_invalid

Stays = Callable[[int, list[int]], bool]
"""(step, steps of all, newest first) -> whether it stays"""


class SecondPlace:
    """Copies committed checkpoints to `place`, one at a time, in a thread of its own. A failure is said and does not stop training.

    While one is copied only the newest offer waits, and every offer that is to stay for good: a slow server is never far behind.
    """

    def __init__(self, place: Location, stays: Stays, for_good: Callable[[int], bool]) -> None:
        self.place, self._stays, self._for_good = place, stays, for_good
        self._waiting: list[Path] = []
        self._copying: Path | None = None
        self._changed = Condition()

    def offer(self, checkpoint: Path) -> None:
        """Copy this checkpoint when its turn comes."""
        with self._changed:
            self._waiting = [folder for folder in self._waiting if self._for_good(step_of(folder))] + [checkpoint]
            if self._copying is None:
                self._copying = self._waiting.pop(0)
                Thread(target=self._run, name="checkpoint-copy", daemon=True).start()

    def held(self) -> list[str]:
        """Names of the checkpoints that are being copied or wait for it."""
        with self._changed:
            return [folder.name for folder in (*self._waiting, self._copying) if folder is not None]

    def wait(self, seconds: float) -> bool:
        """Wait until every offer is copied or has failed; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._copying is None, seconds)

    def _run(self) -> None:
        while self._copying is not None:
            try:
                copy_checkpoint(self._copying, self.place)
                self._prune()
            except Exception as error:  # noqa: BLE001  (the checkpoint itself is safe, and drivers have errors of their own)
                why = " ".join(str(error).split()) or repr(error)
                say(f"train: checkpoint {self._copying.name} was not copied to `{self.place}`: {why}")
            with self._changed:
                self._copying = self._waiting.pop(0) if self._waiting else None
                self._changed.notify_all()

    def _prune(self) -> None:
        names = names_in(self.place)
        steps = [step_of(Path(name)) for name in names]
        for name in names:
            if not self._stays(step_of(Path(name)), steps):
                remove(self.place / name / COMMIT)  # the marker goes first
                remove_folder(self.place / name)


def names_in(place: Location) -> list[str]:
    """Names of the checkpoints in the second place, newest first, valid or not."""
    return sorted((name for name in list_folder(place) if NAME.fullmatch(name)), key=lambda name: step_of(Path(name)), reverse=True)


def copy_checkpoint(checkpoint: Path, place: Location) -> None:
    """Copy a committed checkpoint, its marker last, and read every file back to compare digests. Does nothing if it is there already.

    Raises OSError or DataError.
    """
    digests, target = _committed(checkpoint), place / checkpoint.name
    if _marker(target) == digests:
        return
    remove(target / COMMIT)
    for file in FILES:
        put(checkpoint / file, target / file)
        if sha256_of(target / file) != digests[file]:
            raise DataError(f"{file} differs when it is read back")
    put(checkpoint / COMMIT, target / COMMIT)


def _committed(folder: Path) -> dict[str, str]:
    files: dict[str, str] = read_json(folder / COMMIT)["files"]
    return files


def _marker(folder: Location) -> dict[str, str] | None:
    """The digests in the marker of a copy; None where there is no marker, or one that makes no sense."""
    try:
        files: Any = json.loads((folder / COMMIT).read_text(encoding="utf-8"))["files"]
        return {name: str(files[name]) for name in FILES}
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None


def bring_back(place: Location, checkpoints: Path) -> Path | None:
    """Fetch the newest valid checkpoint of the second place into `checkpoints`; None if it has none. What is broken there is passed over.

    For a run folder without a valid checkpoint. Raises OSError where the place cannot be reached: nobody should start over unasked.
    """
    for name in names_in(place):
        digests = _marker(place / name)
        if digests is None:
            continue
        temporary, final = checkpoints / f".{name}.tmp", checkpoints / name
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            for file in (*FILES, COMMIT):
                _fetch(place / name / file, temporary / file)
            why = why_invalid(temporary)
        except FileNotFoundError:
            why = "a file is missing"
        if why:
            say(f"checkpoint {name} in `{place}` is ignored: {why}")
            shutil.rmtree(temporary)
            continue
        shutil.rmtree(final, ignore_errors=True)
        os.rename(temporary, final)
        fsync_folder(checkpoints)
        say(f"train: no valid checkpoint in `{checkpoints}`: {name} was fetched from `{place}`")
        return final
    return None


def _fetch(source: Location, target: Path) -> None:
    with reading(source) as stream, target.open("xb") as out:
        shutil.copyfileobj(stream, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())
