"""`speechkd report RUN|SHARDS`: writes an HTML page about a run, from the files in its folder, or about published shards."""

from __future__ import annotations

from pathlib import Path

from speechkd.core.errors import InputError
from speechkd.data.shards.index import open_shards
from speechkd.data.storage.manifest import MANIFEST
from speechkd.data.storage.store import UrlPath, parse_location
from speechkd.evaluation.report import write_report
from speechkd.evaluation.shards_report import write_shards_report
from speechkd.stages.results import REPORT
from speechkd.stages.run_folder import RECIPE


def report(given: Path | str, out: Path | None = None) -> Path:
    """Write the page and return it; by default report.html in the folder, for shards behind a URL in the working folder.

    Raises InputError for anything that is neither a run nor published shards.
    """
    path = parse_location(given)
    if isinstance(path, UrlPath):
        shards = open_shards(path)
        return write_shards_report(shards, out or Path(f"{shards.dataset}-{shards.version}.html"))
    if (path / RECIPE).is_file():
        return write_report(path, out or path / REPORT)
    if not (path / MANIFEST).is_file() and not (path / "receipts").is_dir():
        raise InputError(f"`{path}` is no run folder (it has no {RECIPE}) and holds no shards (no {MANIFEST}): name one of the two")
    return write_shards_report(open_shards(path), out or path / REPORT)
