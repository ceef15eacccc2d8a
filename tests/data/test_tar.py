"""USTAR headers are tarfile's own, byte for byte."""

from __future__ import annotations

import tarfile

import pytest

from speechkd.data.storage.tar import ustar_header


@pytest.mark.parametrize("name", ["a.json", "a-B_9.flac", "k" * 80 + ".signals.safetensors"])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 123_456_789, 8**11 - 1])
def test_the_bytes_that_tarfile_writes(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    assert ustar_header(name, size) == info.tobuf(format=tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("name, size", [("k" * 101, 1), ("a.json", 8**11), ("ä.json", 1)])
def test_what_ustar_cannot_say_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError):
        ustar_header(name, size)
