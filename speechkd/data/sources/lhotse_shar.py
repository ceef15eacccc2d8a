"""Lhotse Shar: cuts.NNNNNN.jsonl.gz beside recording.NNNNNN.tar, in the same order. https://lhotse.readthedocs.io/en/latest/shar.html

A cut's audio is the tar member `<cut id>.<format>`, followed by `<cut id>.json`; a cut without audio has `<cut id>.nodata`. Other fields
(features, arrays) are not opened: they may be pickles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from speechkd.core.config import Config
from speechkd.core.errors import InputError, nearest
from speechkd.core.text import paired_forms
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.sources import paths, stated
from speechkd.data.sources.base import Item, Unmatched, unmatched
from speechkd.data.sources.lhotse_cuts import cut_fields, cut_key, cut_problem, read_cuts
from speechkd.data.sources.tarfiles import list_tar, member_payload, read_members


class SharConfig(Config):
    """Cuts whose `field` was exported as audio (flac, wav, mp3 or opus)."""

    kind: Literal["shar"]
    dir: paths.PathBySplit
    """Shar folder below the data root, or split -> folder"""
    field: str = "recording"
    split: str = "train"


class SharSource:
    """Reads lhotse Shar folders."""

    Config = SharConfig

    def __init__(self, config: SharConfig, data_root: Path) -> None:
        self.field_names: set[str] = set()
        self.unmatched: list[Unmatched] = []
        self.config, self.root = config, data_root
        self._orphans: list[str] = []
        self._clips = 0
        self.shards: list[tuple[str, Path, Path]] = []
        for split, name in stated.by_split(config, config.dir, "source.dir", is_folder=True):
            folder = paths.folder(data_root, name, "source.dir")
            cuts = sorted(folder.glob("cuts.*.jsonl.gz")) + sorted(folder.glob("cuts.*.jsonl"))
            if not cuts:
                raise InputError(f"no `cuts.*.jsonl.gz` in `{folder}`: a Shar folder has them (card: source.dir)")
            for path in cuts:
                tar = folder / f"{config.field}.{path.name.split('.')[1]}.tar"
                if not tar.is_file():
                    have = sorted({p.name.split(".")[0] for p in folder.glob("*.*.tar")})
                    close = nearest(config.field, have)
                    hint = f"; did you mean `{close}`?" if close else ""
                    raise InputError(
                        f"no `{tar.name}` beside `{path}`; its folder has the fields {', '.join(have) or 'none'}{hint} (card: source.field)"
                    )
                self.shards.append((split, path, tar))

    def items(self) -> list[Item]:
        """All cuts, sorted by key; one without a member in its tar is rejected when it is read. Raises InputError."""
        self._orphans, self._clips = [], 0
        items = sorted((item for shard in self.shards for item in self._shard(*shard)), key=lambda item: item.key)
        partners = [str(item.payload["cut"]) for item in items if "cut" in item.payload]
        self.unmatched = unmatched("cuts have no member in their tar", partners, len(items))
        self.unmatched += unmatched("members of the tars belong to no cut", self._orphans, self._clips)
        return items

    def _shard(self, split: str, cuts: Path, tar: Path) -> Iterator[Item]:
        payloads: dict[str, dict[str, Any]] = {}
        cut_ids: set[str] = set()
        for member in list_tar(tar):
            stem, _, suffix = member.name.rpartition(".")
            if suffix == "nodata":
                payloads[stem] = {}
            elif suffix not in ("json", "nometa"):
                payloads[stem] = member_payload(tar, self.root, member)
        rows = [(cut_key(cut, f"{cuts}, line {number}"), cut) for number, cut in read_cuts(cuts)]
        names = {cut["id"] for _, cut in rows}
        for name, member_name in paired_forms(names - set(payloads), set(payloads) - names).items():
            payloads[name] = payloads.pop(member_name)
        for key, cut in rows:
            payload = payloads.get(cut["id"], {"problem": f"has no member in `{tar.name}`", "cut": cut["id"]})
            cut_ids.add(cut["id"])
            if "cut" not in payload and payload and (problem := cut_problem(cut)):
                payload = {"problem": problem}
            yield Item(key, split, cut_fields(cut), payload, cut["id"])
        self._orphans += [stem for stem in payloads if stem not in cut_ids]
        self._clips += len(payloads)

    def read(self, items: Sequence[Item]) -> Iterator[RawClip | Rejected | None]:
        """Decode each cut's member: Shar stores the cut, not its whole recording."""
        return read_members(items, self.root, [tar for _, _, tar in self.shards])
