"""Two tensors that are tied in config.json are one only if every number of them is equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from speechkd.core.errors import DataError
from speechkd.core.tensors import read_header
from speechkd.models import fill as module
from speechkd.models.fill import fill


class Tied(nn.Module):
    """Embeddings that are the head, too."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed = nn.Embedding(rows, width, dtype=dtype)
        self.head = nn.Linear(width, rows, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tied")


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rows=st.integers(1, 90), width=st.integers(1, 40), compared=st.integers(1, 4000))
def test_one_differing_number_anywhere_is_refused(folder: Path, data: st.DataObject, rows: int, width: int, compared: int) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    embed = torch.randn(rows, width).to(dtype)
    head = embed.clone()
    path = folder / "model.safetensors"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "COMPARED", compared)
        save_file({"embed.weight": embed, "head.weight": head}, path)
        model = Tied(rows, width, dtype)
        fill(model, read_header(path), folder)
        assert torch.equal(model.head.weight, embed)
        at = data.draw(st.integers(0, rows * width - 1))
        head.view(-1)[at] += 1
        save_file({"embed.weight": embed, "head.weight": head}, path)
        with pytest.raises(DataError, match="tied in config.json but differ"):
            fill(Tied(rows, width, dtype), read_header(path), folder)


def test_another_precision_of_a_tied_tensor_is_refused(folder: Path) -> None:
    embed = torch.randn(4, 3)
    save_file({"embed.weight": embed, "head.weight": embed.bfloat16()}, folder / "model.safetensors")
    with pytest.raises(DataError, match="tied in config.json but differ"):
        fill(Tied(4, 3, torch.float32), read_header(folder / "model.safetensors"), folder)
