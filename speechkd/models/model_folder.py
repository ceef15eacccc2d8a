"""Model folders, local or downloaded from the hub: configuration, tensors by name (safetensors only), and fingerprint."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import read_json
from speechkd.core.tensors import Stored, read_header

SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BLOCK, BLOCKS = 1 << 16, 64
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def local_folder(path_or_id: str, weights: bool = True) -> Path:
    """The folder of a local model, or of a hub model after downloading what is needed (`weights=False`: configuration and tokenizer only).

    Raises InputError if there is no such folder, or if the hub does not know or cannot be asked for the id.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    if not (HUB_ID.fullmatch(path_or_id) or re.fullmatch(r"[A-Za-z0-9][\w.-]*", path_or_id)) or ".." in path_or_id:
        raise InputError(f"no such model folder `{path_or_id}`: name a folder with a config.json, or a hub id such as `owner/name`")
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        found = Path(huggingface_hub.snapshot_download(path_or_id, allow_patterns=SMALL_FILES))
        if weights:
            names = sorted({p.name for p in _weight_names(found)})
            found = Path(huggingface_hub.snapshot_download(path_or_id, allow_patterns=[*SMALL_FILES, *names]))
        return found
    except (OSError, HFValidationError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"`{path_or_id}` is neither a local folder nor a hub model that can be fetched now: {reason}") from None


def config_home(name: str, root: str | None) -> str:
    """Where to read a model's configuration: `root`/`name` where that folder exists and `name` is no folder itself, otherwise `name`."""
    local = Path(root, name) if root else None
    return str(local) if local is not None and not Path(name).is_dir() and local.is_dir() else name


def read_config(path_or_id: str | Path, config_root: str | None = None) -> Any:
    """The transformers configuration of a model folder or hub id; `config_root` stands in for a hub out of reach (`config_home`).

    Raises InputError as `local_folder`, and where there is no configuration that transformers knows.
    """
    from transformers import AutoConfig

    folder = local_folder(config_home(str(path_or_id), config_root), weights=False)
    if not (folder / "config.json").is_file():
        raise InputError(f"no `config.json` in model folder `{folder}`: name a folder as `save_pretrained` writes it")
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # any value may stand in a file of others
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(f"not a model configuration that transformers knows: {reason} ({folder / 'config.json'})") from None


def text_config(path_or_id: str | Path, config_root: str | None = None) -> Any:
    """The part of that configuration that describes the language model: all of it, but for a speech LLM."""
    return read_config(path_or_id, config_root).get_text_config()


def positions_of(text_part: Any) -> int | None:
    """Positions that a language model was made for, from its configuration; None where that names no limit."""
    limit = getattr(text_part, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def model_positions(path_or_id: str | Path, config_root: str | None = None) -> int | None:
    """`positions_of` a model folder or hub id."""
    return positions_of(text_config(path_or_id, config_root))


def _weight_names(folder: Path) -> list[Path]:
    """Paths of the weight files that the index names, or of the single one (which may not be there)."""
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    try:
        names = set(read_json(folder / INDEX)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"not a weight index: {error!r} ({folder / INDEX})") from None
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
            raise DataError(f"the weight index names `{name}`, which is not a plain file name ({folder / INDEX})")
    return [folder / name for name in sorted(names)]


def checkpoint_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a model folder, from headers alone. Raises InputError if a file is missing, DataError if one is torn."""
    files = _weight_names(folder)
    for file in files:
        if not file.is_file():
            raise InputError(
                f"no `{file.name}` in model folder `{folder}` (weights are read as safetensors only: load and "
                "`save_pretrained` the model once to convert it)"
            )
    return {name: stored for file in files for name, stored in read_header(file).items()}


def fingerprint(path_or_id: str) -> str:
    """Digest that identifies a frozen model: of its configuration, and of each weight file's size and 65 blocks spread over it."""
    folder = local_folder(path_or_id)
    checkpoint_tensors(folder)  # says in our own words what is missing
    if not (folder / "config.json").is_file():
        raise InputError(f"no `config.json` in model folder `{folder}`: name a folder as `save_pretrained` writes it")
    state = hashlib.sha256((folder / "config.json").read_bytes())
    for path in _weight_names(folder):
        size = path.stat().st_size
        state.update(f"{path.name}:{size}".encode())
        with path.open("rb") as stream:
            for index in range(BLOCKS + 1):
                stream.seek(max(0, size - BLOCK) * index // BLOCKS, os.SEEK_SET)
                state.update(stream.read(BLOCK))
    return state.hexdigest()
