"""The first stage: a card's audio and metadata become base shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from speechkd.core.errors import InputError
from speechkd.core.log import progress, say
from speechkd.data.cards import Card, blocks, list_items, load_card, open_source
from speechkd.data.manifest import FORMAT_BASE, read_manifest
from speechkd.data.sources.base import Item
from speechkd.data.workers import run_blocks
from speechkd.data.writer import base_receipts, items_digest, publish


def shard(card_path: Path, out: Path, partition: tuple[int, int] = (0, 1), workers: int | None = None, quiet: bool = False) -> Path:
    """Write the shards of partition (i, n) below `out`, and publish the version if they were the last ones missing.

    Returns the version's folder, ROOT/<dataset>/<version>. A published version with this card is left as it is. Continues what was begun.
    Raises InputError: a bad card, missing raw data, a version published from another card, too many rejected items.
    """
    part, parts = partition
    if not 0 <= part < parts:
        raise InputError(f"partition {part}/{parts}: must be 0/{parts} to {parts - 1}/{parts}")
    card = load_card(card_path)
    root = out / card.name / card.version
    if is_published(root, card):
        return root
    items = list_items(card, open_source(card, card_path.parent))
    parted = blocks(items, card.shard_samples)
    receipts = base_receipts(root, card, dict(enumerate(map(items_digest, parted))))
    missing = [number for number in range(part, len(parted), parts) if receipts.read(number) is None]
    if missing:
        _write(root, card, card_path.parent, parted, missing, workers or len(os.sched_getaffinity(0)), quiet)
    left = [number for number in range(len(parted)) if receipts.read(number) is None]
    if left:
        done = f"{len(parted) - len(left)} of {len(parted)} shards"
        say(f"shard: {done} of {card.name}/{card.version} are there; the partition that writes the last one publishes")
        return root
    try:
        publish(root, card, receipts, len(parted))
    except FileNotFoundError:  # another partition published first and swept our temporary file away
        if not is_published(root, card):
            raise
    return root


def is_published(root: Path, card: Card) -> bool:
    """Whether this very card is published at `root`. Raises InputError if another one is."""
    try:
        manifest = read_manifest(root, FORMAT_BASE)
    except FileNotFoundError:
        return False
    if manifest["card"] != card.digest:
        raise InputError(f"{card.name}/{card.version} is published from another card: give this one a new version (key `version`; {root})")
    return True


def _write(root: Path, card: Card, card_dir: Path, parted: Sequence[Sequence[Item]], missing: list[int], workers: int, quiet: bool) -> None:
    setup = {"root": str(root.absolute()), "card": card.model_dump(mode="json"), "card_dir": str(card_dir.absolute())}
    jobs = ({"shard": number, "items": [asdict(item) for item in parted[number]]} for number in missing)
    for _ in progress(run_blocks(setup, jobs, min(workers, len(missing))), "shard", total=len(missing), quiet=quiet):
        pass
