"""`speechkd shard`: turns the audio and metadata that a card describes into base shards."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import read_json_lines
from speechkd.core.log import progress, say
from speechkd.data.cards import Card, allow_outside, list_corpus, load_card, open_source
from speechkd.data.shards.assignment import ITEMS, QUARANTINE, ShardItems, assign_shards, items_digest
from speechkd.data.shards.repair import Repair, damaged_files
from speechkd.data.shards.workers import write_shards
from speechkd.data.shards.writer import CARD, base_receipts, publish
from speechkd.data.sources.base import Item
from speechkd.data.storage.manifest import FORMAT_BASE, INDEX, MANIFEST, read_manifest
from speechkd.data.storage.store import Location, Unreachable, parse_location, remove


def shard(
    card_path: Path,
    out: Location | str,
    partition: tuple[int, int] = (0, 1),
    workers: int | None = None,
    quiet: bool = False,
    repair: bool = False,
) -> Location:
    """Write the shards of partition (i, n) below `out`, a folder or URL; publish the version if no shard is missing then.

    Returns the version's folder, `out`/<dataset>/<version>. Leaves a version published from this card as it is; continues one half written.
    A file of a published version that is missing or has another size is made again; `repair` reads every byte to find the others, too.
    Raises InputError: a bad card, missing raw data, a version published from another card, too many rejected items, an unreachable
    store, a full disk.
    """
    part, parts = partition
    if not 0 <= part < parts:
        raise InputError(f"partition {part}/{parts}: must be 0/{parts} to {parts - 1}/{parts}")
    allow_outside(card_path)
    card = load_card(card_path)
    root = parse_location(out) / card.name / card.version
    try:
        if repair:
            _drop_damaged_manifest(root)
        return _shard(card, card_path.parent, root, partition, workers or len(os.sched_getaffinity(0)), quiet, repair)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"no space left for `{root}`: nothing unfinished is visible there; make room and run the same command") from None


def _shard(card: Card, card_dir: Path, root: Location, partition: tuple[int, int], workers: int, quiet: bool, repair: bool) -> Location:
    part, parts = partition
    if is_published(root, card):
        _mend(card, card_dir, root, partition, workers, quiet, repair)
        return _counted(root, quiet)
    listing = list_corpus(card, open_source(card, card_dir), card_dir)
    for line in [] if quiet else listing.unmatched:
        say(f"shard: look again: {line}")
    planned = assign_shards(card, listing.items, root.parent)
    receipts = base_receipts(root, card, {number: shard_items.digest for number, shard_items in enumerate(planned)})
    if repair or any((root / name).is_file() for name in (INDEX, ITEMS, CARD)):  # it was published once: what lies there may have changed
        for number, problem in receipts.recheck(range(len(planned))):
            if planned[number].reused:
                raise InputError(f"shard {number}: {problem}: repair that version first (`speechkd shard --repair` with its card)")
            say(f"shard: shard {number} is written again: {problem}")
    missing = []
    for number, shard_items in enumerate(planned):
        if receipts.read(number) is None:
            if shard_items.reused:
                receipts.write(
                    number, shard_items.reused["files"], {name: fact for name, fact in shard_items.reused.items() if name != "files"}
                )
            elif number % parts == part:
                missing.append(number)
    if missing:
        _write(root, card, card_dir, planned, missing, workers, quiet)
    left = [number for number in range(len(planned)) if receipts.read(number) is None]
    if left:
        done = f"{len(planned) - len(left)} of {len(planned)} shards"
        say(f"shard: {done} of {card.name}/{card.version} are there; the partition that writes the last one publishes")
        return root
    try:
        publish(root, card, receipts, planned)
    except FileNotFoundError:  # another partition published first and swept our temporary file away
        if not is_published(root, card):
            raise
    return _counted(root, quiet)


def _mend(card: Card, card_dir: Path, root: Location, partition: tuple[int, int], workers: int, quiet: bool, deep: bool) -> None:
    """Make again what is missing or damaged of a published version. Without `deep`, only sizes are looked at, and not behind a URL."""
    if not deep and not isinstance(root, Path):
        return
    manifest = read_manifest(root, FORMAT_BASE)
    damaged = damaged_files(root, manifest, sizes_only=not deep)
    if not damaged:
        return
    for name, problem in damaged.items():
        say(f"shard: {name}: {problem}; it is made again")
    part, parts = partition
    mending = Repair(root, card, manifest, assign_shards(card, list_corpus(card, open_source(card, card_dir), card_dir).items, root.parent))
    numbers = [number for number in mending.shards(damaged) if number % parts == part]
    mending.write_again(numbers, lambda folder, group: _write(folder, card, card_dir, mending.planned, group, workers, quiet), workers + 1)
    if parts > 1:
        say(f"shard: {len(numbers)} shards are made again; when all partitions are, the same command without --partition ends the repair")
        return
    mending.derive_again(damaged)
    say(f"shard: {manifest['dataset']}/{manifest['version']} is whole again: {len(damaged)} files as they were published")


def _drop_damaged_manifest(root: Location) -> None:
    """Remove a manifest that fails its own digest: the version is published again, from shards whose bytes are checked."""
    try:
        read_manifest(root, FORMAT_BASE)
    except FileNotFoundError:
        pass
    except DataError as damage:
        say(f"shard: {damage}; the version is checked and published again")
        remove(root / MANIFEST)


def shards_to_do(card_path: Path, out: str) -> tuple[int, list[int]]:
    """(shards of a corpus, those that are still to be written), without writing anything; none is left of a published version.

    Lists the corpus unless it is published. Raises InputError for a bad card, missing raw data, a version published from another card.
    """
    card = load_card(card_path)
    root = parse_location(out) / card.name / card.version
    if is_published(root, card):
        return len(read_manifest(root, FORMAT_BASE)["shards"]), []
    planned = assign_shards(card, list_corpus(card, open_source(card, card_path.parent), card_path.parent).items, root.parent)
    receipts = base_receipts(root, card, {number: shard_items.digest for number, shard_items in enumerate(planned)})
    missing = [number for number, shard_items in enumerate(planned) if not shard_items.reused and receipts.read(number) is None]
    return len(planned), missing or [0]  # where all are written, someone still has to publish


def _counted(root: Location, quiet: bool) -> Location:
    manifest = read_manifest(root, FORMAT_BASE)
    if not quiet:
        counts = f"{manifest['totals']['samples']} samples, {manifest['quarantined']} of {manifest['input']} items in quarantine"
        say(f"shard: {manifest['dataset']}/{manifest['version']} is published: {counts}")
    return root


def write_sample(card: Card, card_dir: Path, items: list[Item], root: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(manifest, quarantine) of a few items written below `root` by the code that shards a corpus; `check` uses it to try a card."""
    planned = [ShardItems(items, items_digest(card, items))]
    _write(root, card, card_dir, planned, [0], 1, quiet=True)
    publish(root, card, base_receipts(root, card, {0: planned[0].digest}), planned)
    return read_manifest(root, FORMAT_BASE), read_json_lines(root / QUARANTINE)


def is_published(root: Location, card: Card) -> bool:
    """Whether this very card is published at `root`. Raises InputError if another one is."""
    try:
        manifest = read_manifest(root, FORMAT_BASE)
    except FileNotFoundError:
        return False
    except Unreachable as error:
        raise InputError(str(error)) from None
    except DataError as damage:
        raise DataError(f"{damage}: `speechkd shard --repair` with this card publishes it again") from None
    if manifest["card"] != card.digest:
        raise InputError(f"{card.name}/{card.version} is published from another card: give this one a new version (key `version`; {root})")
    return True


def _write(
    root: Location, card: Card, card_dir: Path, planned: Sequence[ShardItems], missing: list[int], workers: int, quiet: bool
) -> None:
    setup = {
        "root": str(root.absolute() if isinstance(root, Path) else root),
        "card": card.model_dump(mode="json"),
        "card_dir": str(card_dir.absolute()),
    }
    jobs = ({"shard": number, "items": [item.plain() for item in planned[number].items]} for number in missing)
    at_once = min(workers + 1, len(missing))  # one more than cores: while one waits for its disk, the others work
    for _ in progress(write_shards(setup, jobs, at_once), "shard", total=len(missing), quiet=quiet):
        pass
