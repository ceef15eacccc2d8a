"""The shards report shows the measurements, stays safe with hostile metadata, and says what is missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkd.core.errors import InputError
from speechkd.data.shards.index import open_shards
from speechkd.data.statistics import clip_level, measure
from speechkd.evaluation.shards_report import spectrogram, write_shards_report
from speechkd.stages.report import report
from speechkd.stages.shard import shard
from tests.data.corpus import tone, write_card, write_echo, write_tones
from tests.evaluation.test_report import EVIL, read

RATE = 16_000


def test_levels_are_what_the_waveform_is() -> None:
    wave_T = tone(1.0, RATE, 400)[:, 0]
    half = clip_level(np.concatenate([wave_T, np.zeros(RATE, np.float32)]))
    assert abs(half.level_db - 20 * np.log10(0.5 / np.sqrt(2))) < 0.1 and abs(half.peak_db - 20 * np.log10(0.5)) < 0.1
    assert abs(half.silent - 0.5) < 0.02 and half.clipped == 0 and half.seconds == 2.0
    assert clip_level(np.clip(4 * wave_T, -1, 1)).clipped > RATE // 2
    assert clip_level(np.array([0.1, 1.0, 0.1, 1.0, 1.0, 0.1], np.float32)).clipped == 0, "two samples are no run"
    assert clip_level(np.zeros(100, np.float32)).level_db == float("-inf") == clip_level(np.zeros(0, np.float32)).level_db
    assert spectrogram(wave_T)[:4] == b"\x89PNG" == spectrogram(np.zeros(3, np.float32))[:4]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with a clipped clip, a dead one, two rejected ones, a column, and metadata that would like to be a script."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = write_tones(folder, 10)
    soundfile.write(folder / "clips/loud.wav", np.clip(5 * tone(0.5, RATE, 300), -1, 1), RATE)
    soundfile.write(folder / "clips/dead.wav", np.zeros(RATE // 2), RATE)
    rows += [{"id": "loud", "audio": "loud.wav", EVIL: EVIL}, {"id": "dead", "audio": "dead.wav", "language": "none"}]
    rows += [{"id": f"gone{number}", "audio": f"{number}gone.wav"} for number in range(2)]
    card = write_card(folder, rows, quarantine_rate=0.5, description=EVIL, homepage=EVIL, audio={"max_clipped": 1.0})
    root = shard(card, folder / "out", quiet=True)
    write_echo(open_shards(root))
    return Path(str(root))


def test_the_statistics_counts_everything(hostile: Path) -> None:
    found = measure(open_shards(hostile))
    assert len(found.seconds_N) == 11 and found.texts == 1 and found.rows == 12 and len(found.levels) == 11
    assert [(reason, count) for reason, count, _ in found.reasons] == [("no such file", 2)]
    assert {split: count for split, count, _ in found.splits} == {"test": 2, "train": 10}
    fields = {field.name: field for field in found.fields}
    assert fields["speaker"].present == 10 / 12 and fields["speaker"].values == 4 and fields["speaker"].common[0][:2] == ("organ0", 3)
    assert sum(level.clipped > 0 for level in found.levels) == 1 and len(measure(open_shards(hostile), clips=3).levels) == 3


def test_the_page_holds_what_was_measured_and_cannot_run_anything(hostile: Path, tmp_path: Path) -> None:
    page = read(write_shards_report(open_shards(hostile), tmp_path / "page.html"))
    for text in (
        "tones/v1",
        "2",
        "of 14 items in quarantine",
        "no such file",
        "gone0, gone1",
        "organ0",
        "echo",
        "median",
        "clips with clipped samples",
        "clips off zero",
        "max_cancelled",
    ):
        assert text in page.text, text
    assert EVIL in page.text, "shown as the text that it is"
    tags = [tag for tag, _ in page.elements]
    assert "script" not in tags and tags.count("audio") == 11 == sum(tag == "img" for tag in tags)
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert all((attributes.get(name) or "data:").startswith("data:") for name in ("src", "href")), (tag, attributes)
    policy = next(attributes for tag, attributes in page.elements if tag == "meta" and attributes.get("http-equiv"))
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_the_verb_tells_runs_from_shards(hostile: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(hostile, tmp_path / "copy"))
    assert report(str(copy)) == copy / "report.html" and list(open_shards(copy).verify()) == []
    assert report(copy, tmp_path / "elsewhere.html").stat().st_size > 20_000
    with pytest.raises(InputError, match="is no run folder .* and holds no shards"):
        report(tmp_path)


def test_text_alone_has_a_page_too(tmp_path: Path) -> None:
    root = shard(write_card(tmp_path, [{"id": "a", "x": 1}], fields={}), tmp_path / "out", quiet=True)
    page = read(report(str(root)))
    assert "No audio to measure." in page.text and "No teacher has answered yet" in page.text and "Nothing was rejected" in page.text


@pytest.mark.system
def test_a_browser_shows_the_page(hostile: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no browser here")
    page = write_shards_report(open_shards(hostile), tmp_path / "page.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,3600"]
    command = [browser, *options, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'shot.png'}", page.as_uri()]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    from matplotlib.image import imread

    picture = imread(tmp_path / "shot.png")
    assert picture.shape[0] == 3600 and picture[..., :3].std() > 0.02, "not a blank page"
