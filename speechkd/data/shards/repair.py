"""Repairs a published version: files that are missing or damaged are made again from the raw data, and must be what the manifest says.

The new files are made in a temporary folder. Only those with the published digest are put in place; if any differs, nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from speechkd.core.errors import InputError
from speechkd.data.cards import Card
from speechkd.data.shards.assignment import ITEMS, QUARANTINE, ShardItems, item_table
from speechkd.data.shards.index import tar_path
from speechkd.data.shards.writer import CARD, base_receipts, card_text, index_table, quarantine_text
from speechkd.data.storage.files import Files
from speechkd.data.storage.manifest import INDEX, Receipts, shard_name, write_parquet
from speechkd.data.storage.store import Location, put, sha256_of, write_text

Write = Callable[[Path, list[int]], None]
"""Writes the shards of these numbers, with their receipts, below a folder"""


def damaged_files(root: Location, manifest: Mapping[str, Any], sizes_only: bool) -> dict[str, str]:
    """File -> what is wrong with it. `sizes_only` reads nothing. Raises InputError for a file that an earlier version holds."""
    files = Files(root, "", manifest["files"])
    found = dict(files.problems(sizes_only))
    for name, problem in found.items():
        if home := files.entries[name].get("in"):
            raise InputError(
                f"{name}: {problem}; version `{manifest['version']}` only refers to it: repair `{root.parent / home}` first, with "
                "`speechkd shard --repair` and the card of that version"
            )
    return found


class Repair:
    """The repair of one version from its card and raw items. Raises InputError where they are not those that it was published from."""

    def __init__(self, root: Location, card: Card, manifest: Mapping[str, Any], planned: Sequence[ShardItems]) -> None:
        self.root, self.card, self.manifest, self.planned = root, card, manifest, planned
        self.files = Files(root, "", manifest["files"])
        self.receipts = base_receipts(root, card, {number: shard_items.digest for number, shard_items in enumerate(planned)})
        stated = [entry["items"] for entry in manifest["shards"]]
        changed = [number for number, entry in enumerate(planned) if number >= len(stated) or stated[number] != entry.digest]
        if changed or len(stated) != len(planned):
            raise InputError(
                f"`{root}` was published from other raw data: {len(changed) or 'some'} of its {len(stated)} shards would hold other items "
                "now; bring the raw data back as it was, or publish a new version that grows this one (keys `version`, `grows`)"
            )

    def shards(self, damaged: Iterable[str]) -> list[int]:
        """Numbers of the shards that must be written again."""
        damaged = set(damaged)
        numbers = {number for number in range(len(self.planned)) if {tar_path(number), _parquet(number)} & damaged}
        if QUARANTINE in damaged:  # its entries are in the receipts
            numbers |= {n for n, entry in enumerate(self.planned) if entry.reused is None and self.receipts.read(n) is None}
        return sorted(numbers)

    def write_again(self, numbers: Sequence[int], write: Write, at_once: int) -> None:
        """Write these shards again, `at_once` at a time, and put them in place. Raises InputError for other bytes than the published."""
        for start in range(0, len(numbers), at_once):
            group = list(numbers[start : start + at_once])
            with TemporaryDirectory(prefix="speechkd-repair-") as folder:
                write(Path(folder), group)
                made = Receipts(Path(folder), "", self.receipts.binding)
                for number in group:
                    assert made.read(number) is not None, "the shard was written a moment ago"
                    names = [tar_path(number), _parquet(number)]
                    self._place(Path(folder), names)
                    receipt = f"{shard_name(number)}.json"
                    put(Path(folder) / "receipts" / receipt, self.receipts.folder / receipt)

    def derive_again(self, damaged: Iterable[str]) -> None:
        """Make index, card, items and quarantine list again, as far as they are damaged; the shards must be whole."""
        names = [name for name in (INDEX, CARD, ITEMS, QUARANTINE) if name in set(damaged)]
        with TemporaryDirectory(prefix="speechkd-repair-") as folder:
            for name in names:
                self._derive(Path(folder) / name)
            self._place(Path(folder), names)

    def _derive(self, path: Path) -> None:
        match path.name:
            case "index.parquet":
                write_parquet(path, index_table(self.files, len(self.planned)))
            case "items.parquet":
                write_parquet(path, item_table(self.planned))
            case "card.yaml":
                write_text(path, card_text(self.card))
            case _:
                read = [entry.reused or self.receipts.read(number) for number, entry in enumerate(self.planned)]
                write_text(path, quarantine_text(entry for receipt in read if receipt is not None for entry in receipt["quarantined"]))

    def _place(self, folder: Path, names: Sequence[str]) -> None:
        for name in names:
            if sha256_of(folder / name) != self.files.entries[name]["sha256"]:
                raise InputError(
                    f"`{self.root / name}` cannot be made again: its bytes would differ from those that were published (the raw audio, "
                    "or a library that encodes it, has changed); restore the file from a copy, or publish a new version (key `version`)"
                )
        for name in names:
            put(folder / name, self.root / name)


def _parquet(shard: int) -> str:
    return f"audio/{shard_name(shard)}.parquet"
