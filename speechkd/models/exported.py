"""Loads a distilled student from its export folder and lets it answer: `load_student(folder).answer(clips, questions)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechkd.core.config import Config, build
from speechkd.core.errors import InputError
from speechkd.core.files import read_json, sha256_file
from speechkd.core.seeds import torch_seed
from speechkd.core.types import Batch, Metadata
from speechkd.models.architectures import meta_encoder
from speechkd.models.collate import Collator, Row
from speechkd.models.encoder import Features
from speechkd.models.encoder_families import SAMPLE_RATE, WAVEFORM
from speechkd.models.export_format_1 import FORMAT_1, from_format_1
from speechkd.models.lora import WEIGHTS as ADAPTER
from speechkd.models.lora import from_peft_names
from speechkd.models.model_folder import config_home, fingerprint, positions_of
from speechkd.models.pretrained import load_causal_lm, load_encoder
from speechkd.models.prompt import Prompt, Reading
from speechkd.models.student import LLM, Student, load_trainable
from speechkd.models.student_config import StudentConfig

FORMAT = "speechkd-student/2"
LORA_FOLDER, LLM_FOLDER = "lora", "llm"
MANIFEST, WEIGHTS, TEMPLATE, TOKENIZER = "export.json", "projector.safetensors", "prompt.j2", "tokenizer"


class Fingerprints(Config):
    """`model_folder.fingerprint` of the two frozen models that a student is built on."""

    encoder: str
    llm: str


class ExportManifest(Config):
    """`export.json`: the student that the folder holds, and which frozen models it needs."""

    format: str
    student: StudentConfig
    """`lora` is in PEFT's format in the folder `lora`; `init_from` and `config_root` belong to training and are not set"""
    fingerprints: Fingerprints
    step: int
    recipe_digest: str
    checkpoint: str
    merged: bool = False
    """LoRA is folded into the language model, which stands in the folder `llm`; `student` then has no `lora`"""
    files: dict[str, str]
    """name -> sha256 of every other file"""
    probe_difference: float | None = None
    """largest difference between the probe batch's logits in training and in the export as read back, over the largest logit"""


def read_manifest(folder: Path) -> ExportManifest:
    """Read the manifest of an export folder and check the files that it lists; formats 2 and 1 are read.

    Raises InputError for another format, a damaged manifest, a missing or changed file.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(f"`{folder}` is no export: it has no {MANIFEST} (make one with `speechkd export RECIPE --out DIR`)")
    try:
        data = read_json(folder / MANIFEST)
    except ValueError as error:
        raise InputError(f"`{folder / MANIFEST}` is damaged: {error}; export again") from None
    manifest = build(ExportManifest, _in_format_2(data, str(folder / MANIFEST)), str(folder / MANIFEST))
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"export lists a file outside its folder: `{name}` ({folder / MANIFEST})")
        if not path.is_file():
            raise InputError(f"export lacks `{name}`, which {MANIFEST} lists: export again ({folder})")
        if sha256_file(path) != expected:
            raise InputError(f"`{name}` is not the file that was exported: its digest differs; export again ({folder})")
    return manifest


def _in_format_2(data: Any, where: str) -> Any:
    """A manifest's data by today's keys. Raises InputError for a format that is not read."""
    if not isinstance(data, dict):
        return data  # `build` refuses it
    if "format" not in data:
        raise InputError(f"key `format` is missing: export again ({where})")
    if data["format"] == FORMAT:
        return data
    if data["format"] != FORMAT_1:
        given = str(data["format"])[:80]
        raise InputError(f"unknown export format `{given}`; this version reads `{FORMAT}` and `{FORMAT_1}`: export again ({where})")
    return {"format": FORMAT, **from_format_1(data, where)}


@dataclass(frozen=True, slots=True)
class Answered:
    """A greedy answer and what it cost."""

    text: str
    tokens: list[int]
    """without the end-of-turn token"""
    ended: bool
    """the student ended its turn; else the answer was cut"""
    prompt_positions: int
    """positions of the question and the clip"""
    logprobs_N: Tensor | None = None
    """of the tokens"""
    top_NK: tuple[Tensor, Tensor] | None = None
    """the K likeliest tokens at each place: log-probs and ids"""


class DistilledStudent:
    """Student, prompt and features in one piece: sound in, text out."""

    def __init__(self, student: Student, prompt: Prompt, features: Features) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.student, self.prompt, self.features = student.eval().to(device), prompt, features
        self.collator = make_collator(student, features)
        self._prompt_tokens: dict[str, int] = {}

    @property
    def model_positions(self) -> int | None:
        """Positions that the language model was made for; None where its configuration names no limit."""
        return positions_of(self.student.llm.lm.config.get_text_config())

    def batch(
        self, clips: Sequence[np.ndarray | None], questions: Sequence[str], responses: Sequence[Sequence[int]] | None = None
    ) -> Batch:
        """Collate clips (16 kHz mono float32) and questions, with responses to be scored or without."""
        rows = []
        for index, (clip, question) in enumerate(zip(clips, questions, strict=True)):
            asked = self.prompt.student(question)
            rows.append(Row(asked.before, asked.after, responses[index] if responses else (), clip))
        return self.collator(rows)

    def check_length(self, question: str, samples: int, what: str) -> None:
        """Raises InputError for a question and a clip of `samples` samples that leave the model no position for an answer."""
        if question not in self._prompt_tokens:
            around = self.prompt.student(question)
            self._prompt_tokens[question] = len(around.before) + len(around.after)
        audio = self.student.projector.positions(self.student.encoder.hearing.frames(samples)) if samples else 0
        _refuse_too_long(self._prompt_tokens[question] + audio, self.model_positions, what)

    def answer(self, clips: Sequence[np.ndarray], questions: Sequence[str], max_new_tokens: int = 64) -> list[str]:
        """Greedy answers, one per clip and question. Raises InputError for a prompt that leaves the model no position for an answer."""
        return self._generate(self.batch(clips, questions), max_new_tokens)

    @torch.no_grad()
    def answers(
        self,
        clips: Sequence[np.ndarray],
        questions: Sequence[str],
        max_new_tokens: Sequence[int],
        follow: Callable[[int, list[int]], bool] | None = None,
        logprobs: int | None = None,
    ) -> list[Answered]:
        """Greedy answers with a limit each. `follow` gets a row and its tokens so far after each, and says whether to go on.

        `logprobs`: score the answers' tokens in one more pass, with so many alternatives at each place. Raises InputError as `answer`.
        """
        batch, stop = self.batch(clips, questions), self.prompt.end_of_turn
        positions, room = batch.mask_BS.sum(1).tolist(), self.model_positions
        _refuse_too_long(max(positions), room, "question and clip")
        limits = [most if room is None else min(most, room - used) for most, used in zip(max_new_tokens, positions, strict=True)]

        def ends(ids_BN: Tensor) -> Tensor:
            over = [ids_BN.shape[1] >= limit for limit in limits]
            if follow is not None:
                for row, ids in enumerate(ids_BN.tolist()):
                    if not over[row] and stop not in ids:
                        over[row] = not follow(row, ids)
            return torch.tensor(over, device=ids_BN.device)

        rows = self.student.generate(batch.to(self.student.device), max(limits), stop, ends)
        scored = [None] * len(rows) if logprobs is None else self._scored(clips, questions, rows, logprobs)
        answers = []
        for row, limit, used, found in zip(rows, limits, positions, scored, strict=True):
            tokens = row[:limit]
            answers.append(Answered(self.prompt.decode(tokens), tokens, len(tokens) < limit, used, *(found or ())))
        return answers

    def _scored(
        self, clips: Sequence[np.ndarray], questions: Sequence[str], rows: list[list[int]], k: int
    ) -> list[tuple[Tensor, tuple[Tensor, Tensor]] | None]:
        """Log-probs of each row's tokens and of the k likeliest at each place; None for a row without tokens."""
        said = [index for index, row in enumerate(rows) if row]
        found: list[tuple[Tensor, tuple[Tensor, Tensor]] | None] = [None] * len(rows)
        if not said:
            return found
        batch = self.batch([clips[i] for i in said], [questions[i] for i in said], [rows[i] for i in said])
        logprobs_TV = self.logits(batch, batch.response_T - 1).float().log_softmax(-1)  # the position before a token predicts it
        for index, logprobs_NV in zip(said, logprobs_TV.split([len(rows[i]) for i in said]), strict=True):
            values_NK, ids_NK = logprobs_NV.topk(k, dim=-1)
            found[index] = (logprobs_NV[torch.arange(len(rows[index])), torch.tensor(rows[index])], (values_NK, ids_NK))
        return found

    def read(self, facts: Sequence[Metadata], questions: Sequence[str], reading: Reading, max_new_tokens: int = 64) -> list[str]:
        """Greedy answers where each clip's metadata is read in its place, LoRA on: what training left of the text ability."""
        rows = [Row(self.prompt.read(question, reading, known), (), (), None) for known, question in zip(facts, questions, strict=True)]
        return self._generate(self.collator(rows), max_new_tokens)

    def _generate(self, batch: Batch, max_new_tokens: int) -> list[str]:
        limit, lengths = self.model_positions, batch.mask_BS.sum(1).tolist()
        _refuse_too_long(max(lengths), limit, "question and clip")
        rows = self.student.generate(batch.to(self.student.device), max_new_tokens, self.prompt.end_of_turn)
        return [self.prompt.decode(row if limit is None else row[: limit - length]) for row, length in zip(rows, lengths, strict=True)]

    @torch.no_grad()
    def logits(self, batch: Batch, predict_T: Tensor) -> Tensor:
        """Logits [T, V] at flat positions, for comparing with training."""
        device = self.student.device
        return self.student.llm.logits(self.student(batch.to(device), predict_T.to(device))).cpu()


def _refuse_too_long(needs: int, limit: int | None, what: str) -> None:
    if limit is not None and needs >= limit:
        raise InputError(f"{what}: {needs:,} positions, the student's language model has {limit:,}: shorten the question or the clip")


def make_collator(student: Student, features: Features) -> Collator:
    """The collator that fits a student: its features, frames and positions."""
    return Collator(features, student.encoder.hearing, student.projector.positions)


def load_tokenizer(name: str) -> Any:
    """A tokenizer from a folder or hub id. Raises InputError where it cannot be had."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no tokenizer at `{name}`: no folder with one, no hub id that can be reached; copy the tokenizer's files "
            f"there ({_first(error)})"
        ) from None


def load_features(name: str) -> Features:
    """The encoder's feature extractor from a folder or hub id. Raises InputError where it cannot be had."""
    from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

    try:
        extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no preprocessor_config.json at `{name}`: no such folder, no hub id that can be reached ({_first(error)})"
        ) from None
    if not isinstance(extractor, (WhisperFeatureExtractor, Wav2Vec2FeatureExtractor)):
        raise InputError(f"features must be Whisper's log-mels or a waveform, are of `{type(extractor).__name__}` (`{name}`)")
    return Features(extractor)


def check_features(name: str, config_root: str | None = None) -> None:
    """Raises InputError where an encoder's feature extractor makes other features than the encoder takes, as their files say."""
    features, encoder = load_features(config_home(name, config_root)), meta_encoder(config_home(name, config_root))
    kind, extractor = encoder.config.model_type, features.extractor  # type: ignore[union-attr]
    mels = None if kind in WAVEFORM else encoder.config.num_mel_bins  # type: ignore[union-attr]
    way_out = f"put the preprocessor_config.json that belongs to the encoder into `{name}` (student.encoder)"
    if features.mels != (mels is not None):
        raise InputError(f"encoder `{name}` ({kind}) takes {'log-mels' if mels else 'waveforms'}, its extractor makes others: {way_out}")
    if mels is not None and extractor.feature_size != mels:
        raise InputError(f"encoder `{name}` takes {mels} mels, its extractor makes {extractor.feature_size}: {way_out}")
    if extractor.sampling_rate != SAMPLE_RATE:
        raise InputError(f"the extractor of `{name}` hears {extractor.sampling_rate} Hz, shards have {SAMPLE_RATE}: {way_out}")


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__


def load_student(folder: str | Path, weights: bool = True) -> DistilledStudent:
    """Load the student of an export. `weights=False` leaves mix and projector untrained (the control of an evaluation).

    Raises InputError for a missing or changed file, or where the frozen models are not those of the export.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    config, llm_name = manifest.student, llm_of(folder, manifest)
    bases = (("encoder", config.encoder, manifest.fingerprints.encoder), ("llm", llm_name, manifest.fingerprints.llm))
    for part, name, expected in bases:
        where = f"`{folder / MANIFEST}` names it, student.{part}: write there where the model lies on this machine"
        try:
            found = fingerprint(name)
        except InputError as error:
            raise InputError(f"{error}; {where}") from None
        if found != expected:
            raise InputError(f"`{name}` is not the model that this export was trained with: its fingerprint differs; {where}")
    dtype = getattr(torch, config.dtype)
    encoder, llm = load_encoder(config.encoder, dtype), load_causal_lm(llm_name, dtype)
    with torch_seed(0, "untrained"):  # the control is the same whenever it is asked
        student = Student(encoder, llm, config)
    if weights:
        load_trainable(student, trained_tensors(folder, manifest))
    prompt = Prompt((folder / TEMPLATE).read_text(encoding="utf-8"), load_tokenizer(str(folder / TOKENIZER)), str(folder / TEMPLATE))
    return DistilledStudent(student, prompt, load_features(str(folder)))


def llm_of(folder: Path, manifest: ExportManifest) -> str:
    """Folder or hub id of an export's language model: its own merged one, or the frozen one that it names."""
    return str(folder / LLM_FOLDER) if manifest.merged else manifest.student.llm


def trained_tensors(folder: Path, manifest: ExportManifest) -> dict[str, Tensor]:
    """The trained tensors of an export, by their parameter names in `Student`."""
    from safetensors.torch import load_file

    tensors = load_file(folder / WEIGHTS)
    if manifest.student.lora is not None and (folder / LORA_FOLDER / ADAPTER).is_file():
        tensors |= from_peft_names(load_file(folder / LORA_FOLDER / ADAPTER), LLM)
    return tensors
