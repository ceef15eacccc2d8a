"""How Energon cooks a crude sample: the FLAC decoded by soundfile, batches as lists."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import soundfile


def task_encoder() -> Any:
    """A task encoder; built here because its base class is there only where Energon is."""
    from megatron.energon import Cooker, DefaultTaskEncoder, stateless

    class Audio(DefaultTaskEncoder):  # type: ignore[misc]
        cookers = [Cooker(stateless(cook))]
        decoder = None

        @stateless  # type: ignore[untyped-decorator]
        def batch(self, samples: list[Any]) -> list[np.ndarray]:
            return [sample["audio"] for sample in samples]

    return Audio()


def cook(sample: dict[str, Any]) -> dict[str, Any]:
    """One clip, decoded."""
    from megatron.energon import basic_sample_keys

    return {**basic_sample_keys(sample), "audio": soundfile.read(io.BytesIO(sample["flac"]), dtype="float32")[0]}
