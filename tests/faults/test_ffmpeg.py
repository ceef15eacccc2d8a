"""Audio as ffmpeg reads it: the animals of the zoo, and files that ffmpeg's own encoders and muxers write."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkd.data.audio.clips import decode_file
from speechkd.data.audio.raw import RawClip, Rejected
from tests.faults.audio_zoo import Animal, sound, zoo

pytestmark = [pytest.mark.system, pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")]
OTHERWISE = {
    "-joined|-chained|header-of-the-first": "plays the headers of later parts as sound, and cuts only the first part's padding",
    "zeros-(before|behind)": "takes zeros for frames",
    "VORBIS$|OGG-2-channels": "plays the last block whole, 4 ms beyond the position that the last page states",
    "rifx": "takes big-endian samples for little-endian ones",
    "rf64-size-|without-padding": "reads nothing",
    "flac-in-ogg": "wants pages with checksums, which the zoo's have not; ffmpeg's own are among the files below",
}
"""Where ffmpeg 5.1 reads another length or level than the sound that was written, which test_audio_zoo.py compares -> what it does"""
READ = {
    "mono": "vbr.mp3 -c:a libmp3lame -q:a 4|bare.mp3 -c:a libmp3lame -write_xing 0|id3v1.mp3 -c:a libmp3lame -write_id3v1 1"
    "|8k.mp3 -c:a libmp3lame -reservoir 0 -ar 8000|11k.mp3 -c:a libmp3lame -ar 11025|v.ogg -c:a libvorbis|o.opus -c:a libopus"
    "|f.ogg -c:a flac|a.flac|block.flac -c:a flac -frame_size 4096 -compression_level 12|a.w64|a.aiff|sowt.aiff -c:a pcm_s16le"
    "|a.caf -c:a pcm_s16be|a.au|u.au -c:a pcm_mulaw|f32.wav -c:a pcm_f32le|f64.wav -c:a pcm_f64le|a.wav -ar 8000 -c:a pcm_alaw"
    "|rf.wav -rf64 always|bext.wav -write_bext 1 -metadata description=x|info.wav -metadata title=abc",
    "stereo": "cbr.mp3 -c:a libmp3lame -b:a 96k|abr.mp3 -c:a libmp3lame -abr 1 -b:a 96k|48k.mp3 -c:a libmp3lame -write_xing 0 -ar 48000"
    "|q8.ogg -c:a libvorbis -q:a 8|60ms.ogg -c:a libopus -frame_duration 60|f.oga -c:a flac|24.flac -sample_fmt s32"
    "|24.aiff -c:a pcm_s24be|24.wav -c:a pcm_s24le",
}
NAMED = {
    "s.spx -c:a libspeex": "Ogg with Speex", "alac.caf -c:a alac": "unsupported encoding", "a.wv": "WavPack", "a.tta": "True Audio",
    "ms.wav -c:a adpcm_ms": "WAV with encoding MS_ADPCM", "ima.wav -c:a adpcm_ima_wav": "WAV with encoding IMA_ADPCM",
    "g722.wav -c:a g722": "WAV with encoding G.722", "gsm.wav -ar 8000 -c:a libgsm_ms": "WAV with encoding GSM610",
    "mp3.wav -c:a libmp3lame": "WAV with encoding MPEG_LAYER_III", "a.m4a -c:a aac": "MPEG-4", "alac.m4a -c:a alac": "MPEG-4",
    "a.mov -c:a pcm_s16le": "MPEG-4", "a.3gp -c:a aac": "MPEG-4", "a.aac -c:a aac": r"AAC \(ADTS\)", "a.wma -c:a wmav2": "ASF",
    "a.webm -c:a libopus": "Matroska or WebM", "a.mka -c:a flac": "Matroska or WebM", "a.mp2 -c:a mp2": "MPEG audio layer II",
    "a.ac3 -c:a ac3": "AC-3", "a.avi -c:a pcm_s16le": "RIFF AVI", "a.voc": "VOC", "a.ts -c:a aac": "MPEG transport",
    "a.flv -ar 44100 -c:a aac": "Flash video", "a.dts -ar 48000 -c:a dca -strict -2": "DTS",
}  # fmt: skip
"""What is not read, and what its reason calls it"""


def read_by_ffmpeg(path: Path, clip: RawClip) -> np.ndarray:
    """float32 [T, C] at the clip's rate. Opus by its reference decoder: ffmpeg's own is up to 0.3 of full scale beside it."""
    reference = ["-c:a", "libopus"] if b"OpusHead" in path.read_bytes()[:400] else []
    channels = clip.samples_TC.shape[1]
    how = ["-f", "f32le", "-ar", str(clip.rate), "-ac", str(channels), "-"]
    done = subprocess.run(["ffmpeg", "-nostdin", "-v", "quiet", *reference, "-i", path, *how], capture_output=True, check=False)
    samples = np.frombuffer(done.stdout, "<f4")
    return samples[: len(samples) // channels * channels].reshape(-1, channels)


def same_sound(path: Path, clip: RawClip) -> bool:
    """Equal length to 1 ms, equal RMS to 1 %, and no sample far from the other's."""
    theirs, ours = read_by_ffmpeg(path, clip), clip.samples_TC
    if not len(theirs) or abs(len(theirs) - len(ours)) > clip.rate / 1000:
        return False
    level, other = (float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) for samples in (ours, theirs))
    both = min(len(ours), len(theirs))
    return abs(level / other - 1) < 0.01 and float(np.abs(ours[:both] - theirs[:both]).max()) < 0.05


def test_the_zoo_sounds_as_ffmpeg_reads_it(tmp_path: Path) -> None:
    path, compared, wrong = tmp_path / "clip", 0, []
    animals: list[Animal] = [animal for animal in zoo() if not animal.reason]
    for animal in animals:
        path.write_bytes(animal.data)
        clip = decode_file(path)
        assert isinstance(clip, RawClip), f"{animal.name}: {clip}"
        if not any(re.search(name, animal.name) for name in OTHERWISE):
            compared += 1
            wrong += [] if same_sound(path, clip) else [animal.name]
    assert not wrong and compared > 80, (wrong, compared)


def test_what_ffmpeg_writes_is_read_or_called_by_its_name(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "mono.wav", sound(), 16_000)
    soundfile.write(tmp_path / "stereo.wav", sound(rate=44_100, channels=2), 44_100)
    made = 0

    def make(how: str, source: str) -> Path | None:
        """The file; None for an encoder that this ffmpeg was built without."""
        name, *words = how.split()
        out = tmp_path / f"out-{name}"
        done = subprocess.run(["ffmpeg", "-nostdin", "-v", "quiet", "-y", "-i", tmp_path / f"{source}.wav", *words, out], check=False)
        return out if done.returncode == 0 else None

    for source, files in READ.items():
        for how in files.split("|"):
            if path := make(how, source):
                made += 1
                clip = decode_file(path)
                assert isinstance(clip, RawClip) and same_sound(path, clip), f"{how}: {clip}"
                assert "bare" in how or "48k" in how or abs(len(clip.samples_TC) / clip.rate - 1.5) < 0.001, how
    for how, name in NAMED.items():
        if path := make(how, "mono"):
            made += 1
            refused = decode_file(path)
            assert isinstance(refused, Rejected) and re.search(name, refused.reason), f"{how}: {refused}"
    assert made > 45
