"""What a frozen model is, without reading all of it: config, and every weight file's header, size and a spread of its bytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from speechkd.core.errors import InputError

BLOCK, BLOCKS = 1 << 16, 64


def model_folder(name: str) -> Path:
    """The folder of a model: a local one, or the hub's snapshot of an id. Raises InputError where neither can be had."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]))
    except (OSError, HFValidationError, ValueError) as error:
        raise InputError(f"no model at `{name}`: no such folder, and no hub id that can be reached ({type(error).__name__})") from None


def fingerprint(name: str) -> str:
    """Digest of `config.json` and of every safetensors file (size, first block, and 64 blocks spread over it)."""
    folder = model_folder(name)
    state = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        state.update(f"{path.name}:{size}".encode())
        with path.open("rb") as stream:
            for index in range(BLOCKS + 1):
                stream.seek(max(0, size - BLOCK) * index // BLOCKS, os.SEEK_SET)
                state.update(stream.read(BLOCK))
    return state.hexdigest()
