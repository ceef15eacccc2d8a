"""Other loaders, each used as its documentation shows for speed: loader processes where it has them, soundfile where decoding is left open.

Each has `write(wavs, out)` on two cores and `read(folder, workers)`: all clips decoded, float32; webdataset also `raw(folder)`: all
members' bytes. A loader that is not installed is left out with a line.
"""

from __future__ import annotations

import importlib.machinery
import io
import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from torch.utils.data import DataLoader, IterableDataset

BATCH = 32
"""Clips that loader processes hand over at once"""


def _decoded(data: bytes) -> np.ndarray:
    samples_T: np.ndarray = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    return samples_T


def _flac(path: Path) -> bytes:
    samples_T, rate = soundfile.read(path, dtype="int16")
    out = io.BytesIO()
    soundfile.write(out, samples_T, rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def _on_two_cores(write: Callable[[Sequence[Path], Path], None], wavs: Sequence[Path], folders: Sequence[Path]) -> None:
    half = -(-len(wavs) // 2)
    with get_context("fork").Pool(2) as pool:
        pool.starmap(write, [(wavs[:half], folders[0]), (wavs[half:], folders[1])])


def _list(batch: list[Any]) -> list[Any]:
    return batch


def _loader(dataset: Any, workers: int) -> Iterator[np.ndarray]:
    """Through torch's DataLoader; without workers directly."""
    if not workers:
        yield from dataset
        return
    for batch in DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=_list):
        yield from batch


class WebDataset:
    """webdataset: tar in, samples out."""

    name = "webdataset"

    def __init__(self) -> None:
        import webdataset

        self.version = webdataset.__version__

    def write(self, wavs: Sequence[Path], out: Path) -> None:
        out.mkdir(parents=True)
        _on_two_cores(_write_webdataset, wavs, [out / "a-%06d.tar", out / "b-%06d.tar"])

    def _pipeline(self, folder: Path) -> Any:
        import webdataset

        urls = [str(path) for path in sorted(folder.glob("*.tar"))]
        return webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=None)

    def read(self, folder: Path, workers: int) -> Iterator[np.ndarray]:
        return _loader(self._pipeline(folder).map(_webdataset_clip), workers)

    def raw(self, folder: Path) -> Iterator[bytes]:
        for sample in self._pipeline(folder):
            yield sample["flac"]
            yield sample["json"]


def _write_webdataset(wavs: Sequence[Path], pattern: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(str(pattern), maxcount=-(-len(wavs) // 4), verbose=0) as writer:
        for path in wavs:
            writer.write({"__key__": path.stem, "flac": _flac(path), "json": {"transcript": "some words"}})


def _webdataset_clip(sample: dict[str, Any]) -> np.ndarray:
    json.loads(sample["json"])
    return _decoded(sample["flac"])


class Lhotse:
    """lhotse Shar: cuts and recordings in parallel archives."""

    name = "lhotse Shar"

    def __init__(self) -> None:
        import lhotse

        self.version = lhotse.__version__

    def write(self, wavs: Sequence[Path], out: Path) -> None:
        for part in ("a", "b"):
            (out / part).mkdir(parents=True)
        _on_two_cores(_write_shar, wavs, [out / "a", out / "b"])

    def read(self, folder: Path, workers: int) -> Iterator[np.ndarray]:
        return _loader(_Shar(folder, workers), workers)


def _write_shar(wavs: Sequence[Path], out: Path) -> None:
    from lhotse import MonoCut, Recording, SupervisionSegment
    from lhotse.shar import SharWriter

    with SharWriter(str(out), fields={"recording": "flac"}, shard_size=-(-len(wavs) // 4)) as writer:
        for path in wavs:
            recording = Recording.from_file(path, recording_id=path.stem)
            words = SupervisionSegment(path.stem, path.stem, 0, recording.duration, text="some words")
            writer.write(MonoCut(path.stem, 0, recording.duration, 0, supervisions=[words], recording=recording))


class _Shar(IterableDataset[np.ndarray]):
    """Cuts of both parts; loader processes split by shards."""

    def __init__(self, folder: Path, workers: int) -> None:
        from lhotse import CutSet

        fields = {
            "cuts": [str(path) for path in sorted(folder.glob("*/cuts.*"))],
            "recording": [str(path) for path in sorted(folder.glob("*/recording.*"))],
        }
        self._cuts = CutSet.from_shar(fields=fields, split_for_dataloading=workers > 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        for cut in self._cuts:
            yield cut.load_audio()[0]


class Streaming:
    """MosaicML streaming: MDS shards."""

    name = "MosaicML streaming"

    def __init__(self) -> None:
        _without_torchvision()
        import streaming

        self.version = streaming.__version__

    def write(self, wavs: Sequence[Path], out: Path) -> None:
        from streaming.base.util import merge_index

        for part in ("a", "b"):
            (out / part).mkdir(parents=True)
        _on_two_cores(_write_mds, wavs, [out / "a", out / "b"])
        merge_index(str(out), keep_local=True)

    def read(self, folder: Path, workers: int) -> Iterator[np.ndarray]:
        from streaming import StreamingDataset

        dataset = StreamingDataset(local=str(folder), shuffle=False, batch_size=BATCH)
        if not workers:
            return (_decoded(sample["flac"]) for sample in dataset)
        return self._with(dataset, workers)

    def _with(self, dataset: Any, workers: int) -> Iterator[np.ndarray]:
        for batch in DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=_decode_all):
            yield from batch


def _decode_all(batch: list[dict[str, Any]]) -> list[np.ndarray]:
    return [_decoded(sample["flac"]) for sample in batch]


def _write_mds(wavs: Sequence[Path], out: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(out), columns={"key": "str", "flac": "bytes", "text": "str"}, compression=None, hashes=[]) as writer:
        for path in wavs:
            writer.write({"key": path.stem, "flac": _flac(path), "text": "some words"})


def _without_torchvision() -> None:
    """streaming imports torchvision for pictures, whose compiled part no CPU torch can load: names without content serve."""
    import transformers  # noqa: F401  (looks for the real one, so it goes first)

    things = {"": {}, ".datasets": {"VisionDataset": object}, ".transforms": {}, ".transforms.functional": {"to_tensor": None}}
    for name, content in things.items():
        module = types.ModuleType(f"torchvision{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        module.__dict__.update(content)
        sys.modules.setdefault(module.__name__, module)


class Energon:
    """Megatron-Energon on webdataset tars."""

    name = "Megatron-Energon"

    def __init__(self) -> None:
        from importlib.metadata import version

        import megatron.energon  # noqa: F401

        self.version = version("megatron-energon")

    def write(self, wavs: Sequence[Path], out: Path) -> None:
        WebDataset().write(wavs, out)
        program = Path(sys.executable).parent / "energon"
        words = [program, "prepare", out, "--non-interactive", "--split-parts", "train:.*", "--sample-type", "CrudeWebdataset"]
        subprocess.run([*map(str, words), "--num-workers", "2", "--no-progress"], check=True, stdout=subprocess.DEVNULL)

    def read(self, folder: Path, workers: int) -> Iterator[np.ndarray]:
        from megatron.energon import WorkerConfig, get_loader, get_val_dataset

        from tests.bench.energon_task import task_encoder

        config = WorkerConfig(rank=0, world_size=1, num_workers=workers)
        dataset = get_val_dataset(folder, split_part="train", worker_config=config, batch_size=BATCH, task_encoder=task_encoder())
        for batch in get_loader(dataset):
            yield from batch


PEERS: tuple[Any, ...] = (WebDataset, Lhotse, Streaming, Energon)


def installed() -> tuple[list[Any], list[str]]:
    """The loaders that are here, and a line for each that is not."""
    here, absent = [], []
    for kind in PEERS:
        try:
            here.append(kind())
        except ImportError as error:
            absent.append(f"{kind.name}: not installed ({error}), left out")
    return here, absent
