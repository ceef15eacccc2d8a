"""A tiny student of the real families, live teachers of every kind, micro-batches in which any role, channel or teacher may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speechkd.core.types import Batch, TeacherSignals
from speechkd.losses import LOSSES
from speechkd.models.architectures import encoder_from
from speechkd.models.collate import Collator, Row
from speechkd.models.encoder import EncoderStates, LayerMix
from speechkd.models.encoder_families import WAVEFORM
from speechkd.models.projectors import PROJECTORS
from speechkd.models.recompute import Recompute
from speechkd.models.student import Student
from speechkd.models.student_config import StudentConfig
from speechkd.teachers.live import AudioTeacher, TextTeacher, build_live
from speechkd.teachers.live_config import SelfConfig, SnapshotConfig
from speechkd.train.distiller import Distiller, Method, StoredStates

V, U, D, E, WINDOW = 97, 105, 24, 32, 75
STREAMS = ("kd", "ift", "kd/text")
K = 5


def encoder(kind: str = "whisper") -> nn.Module:
    from transformers import AutoConfig, WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if kind in WAVEFORM:
        small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20, "num_conv_pos_embeddings": 4}
        conv = {"conv_dim": [8] * 7, "num_conv_pos_embedding_groups": 2}
        return encoder_from(AutoConfig.for_model(kind, **small, **conv), torch.float32).eval()
    if kind == "qwen2_5_omni":
        sizes = {"num_mel_bins": 8, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 20}
        audio = sizes | {"max_source_positions": WINDOW, "n_window": 10, "output_dim": D}
        return encoder_from(AutoConfig.for_model("qwen2_5_omni_thinker", audio_config=audio), torch.float32).eval()
    config = WhisperConfig(num_mel_bins=8, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=20)
    config.max_source_positions, config.decoder_layers = WINDOW, 1
    return WhisperEncoder(config).eval()


def llm(vocabulary: int = V, width: int = D, layers: int = 2, attention: str = "sdpa") -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=width == D,
        initializer_range=0.3,  # far from uniform, so that a divergence has something to say
    )
    model = Qwen2ForCausalLM(config).eval()
    model.set_attn_implementation(attention)
    return model


@dataclass(frozen=True)
class Case:
    """One contract: losses (name -> block), a projector, and perhaps LoRA. Live teachers are those that the losses name."""

    losses: dict[str, dict[str, Any]]
    projector: dict[str, Any] = field(default_factory=lambda: {"kind": "mlp_stack", "stack": 5, "hidden": 12})
    lora: dict[str, Any] | None = None
    encoder_states: EncoderStates = "weighted_sum"
    encoder: str = "whisper"
    stored: StoredStates | None = None
    recompute: Recompute = "off"

    def configs(self) -> dict[str, Any]:
        out = {}
        for name, block in self.losses.items():
            kind = block.get("kind", name)
            out[name] = LOSSES.get(kind).Config.model_validate({**block, "kind": kind})
        return out

    @property
    def attention(self) -> bool:
        """Whether a loss weighs by stored attention."""
        return any("attention" in config.needs().stored for config in self.configs().values())

    def positions(self, samples: int) -> int:
        """Audio positions of a clip."""
        config = PROJECTORS.get(self.projector["kind"]).Config.model_validate(self.projector)
        made: Any = PROJECTORS.get(self.projector["kind"])(config, 16, D)
        count: int = made.positions(frames(samples))
        return count

    def teachers(self) -> list[str]:
        return list(dict.fromkeys(name for config in self.configs().values() for name in config.live_teachers().values()))


def student_of(case: Case) -> Student:
    block = {"encoder": case.encoder, "llm": "tiny", "projector": case.projector, "lora": case.lora, "encoder_states": case.encoder_states}
    return Student(encoder(case.encoder), llm(), StudentConfig.model_validate({**block, "recompute": case.recompute}))


def live_of(name: str, case: Case, student: Student) -> TextTeacher | AudioTeacher:
    """By name: `self`, `nothing` (self, unread), `snapshot`, `wider` (a text LLM of other depth, width and vocabulary), `hearing`."""
    if name in ("self", "nothing"):
        return build_live(name, SelfConfig(), student, llm, _never)
    if name == "snapshot":
        return build_live(name, SnapshotConfig(), student, llm, _never)
    if name == "wider":
        return TextTeacher(name, llm(U, E, 3))
    assert name == "hearing"
    config = PROJECTORS.get(case.projector["kind"]).Config.model_validate(case.projector)
    projector: Any = PROJECTORS.get(case.projector["kind"])(config, 16, E)
    return AudioTeacher(LayerMix(3), projector, llm(U, E, 3, "eager"))


def _never(name: str) -> AudioTeacher:
    raise AssertionError(name)


def distiller_of(case: Case, seed: int = 0) -> Distiller:
    """The same weights whoever calls it."""
    torch.manual_seed(seed)
    student = student_of(case)
    teachers = {name: live_of(name, case, student) for name in case.teachers()}
    generator = torch.Generator().manual_seed(1)
    for name, param in student.named_parameters():
        if name.endswith("lora_B"):  # else LoRA off and on are one
            param.data = torch.randn(param.shape, generator=generator) * 0.1
        elif param.requires_grad:  # a student that is its own snapshot has nothing to learn from it
            param.data += torch.randn(param.shape, generator=generator) * 0.05
    shared_W = torch.arange(V) % 11 != 3
    shared = {name: shared_W if name in ("wider", "hearing") else None for name in teachers}
    return Distiller(student, Method(losses=case.configs(), streams=STREAMS, teachers=teachers, shared=shared, stored=case.stored))


def waveforms(clips: Sequence[np.ndarray], samples: int) -> Tensor:
    """[C, samples]: the clips as they are."""
    return torch.stack([torch.from_numpy(np.pad(clip, (0, samples - clip.size))) for clip in clips])


def features(clips: Sequence[np.ndarray], samples: int) -> Tensor:
    """[C, M, T]: something that depends on the clip alone."""
    time = torch.arange(samples // 160) / (2 * WINDOW)  # not of the batch: the longest clip says how much of it there is
    tones = torch.arange(1, 9)[:, None]
    return torch.stack([torch.sin(tones * time * 9 + 50 * float(clip[0])) * (time * 2 * WINDOW * 160 < clip.size) for clip in clips])


def frames(samples: int) -> int:
    return max(1, -(-samples // 320))


def collator(distiller: Distiller, case: Case) -> Collator:
    """The real one; signals as a column with K of V stored would give them."""
    needs = {signal for config in case.configs().values() for signal in config.needs().stored}
    zeros: dict[str, Tensor] = {}
    if "topk" in needs:
        zeros |= {"ids_TK": torch.zeros(1, K, dtype=torch.long), "logp_TK": torch.zeros(1, K), "tail_logp_T": torch.zeros(1)}
    if case.stored is not None:
        zeros["hidden_TLE"] = torch.zeros(1, len(case.stored.layers), case.stored.width)
    if "sampled" in needs:
        zeros |= {"sampled_ids_TN": torch.zeros(1, K, dtype=torch.long), "sampled_weights_TN": torch.zeros(1, K)}
    student = distiller.student
    return Collator(
        waveforms if case.encoder in WAVEFORM else features,
        student.encoder.hearing,
        student.projector.positions,
        signals=TeacherSignals(**zeros),
        attention=case.attention,
        views=tuple(distiller.views()),
    )


def rows(case: Case, seed: int, without: str) -> list[Row]:
    """Rows of one micro-batch, two a stream. `without`: a stream that has none, `audio` (only read), a teacher that reads none, `all`."""
    generator = np.random.default_rng(seed)
    out = []
    for index in range(6):
        stream = STREAMS[index % 3]
        heard = not stream.endswith("/text")
        unread = without in case.teachers() and stream != "ift"  # no loss compares `ift` with a teacher, so none reads it
        if without in (stream, "all") or (without == "audio" and heard) or unread:
            continue
        ids = lambda n: generator.integers(1, V, n).tolist()  # noqa: E731
        response = ids(2 + index % 3)
        T = len(response)
        logp = np.log(np.sort(generator.dirichlet(np.ones(K + 1), T))[:, ::-1] + 1e-4)
        logp -= np.log(np.exp(logp).sum(1, keepdims=True))
        signals = {
            "ids_TK": torch.from_numpy(np.stack([generator.permutation(V)[:K] for _ in range(T)])),
            "logp_TK": torch.from_numpy(logp[:, :K]).float(),
            "tail_logp_T": torch.from_numpy(logp[:, K]).float(),
            "sampled_ids_TN": torch.from_numpy(np.stack([generator.permutation(V)[:K] for _ in range(T)])),
            "sampled_weights_TN": torch.full((T, K), 1 / K),
            "hidden_TLE": torch.from_numpy(generator.normal(size=(T, 2, E))).float(),
        }
        clip = generator.normal(size=int(generator.integers(3_000, 20_000))).astype(np.float32)
        if case.attention:
            signals["attention_CQ"] = torch.from_numpy(generator.dirichlet(np.ones(case.positions(clip.size)))).float()[None]
        readers = [name for name in case.teachers() if name in ("self", "nothing", "wider")]
        out.append(
            Row(
                ids(3),
                ids(2),
                response,
                clip if heard else None,
                signals=TeacherSignals(**signals) if stream != "ift" else TeacherSignals(),
                stream=STREAMS.index(stream),
                language=index % 3 - 1,
                words=ids(4),
                reads={name: ids(5) for name in readers} if stream != "ift" else {},
            )
        )
    return out


def batches(distiller: Distiller, case: Case, step: int, without: str) -> tuple[list[Batch], Batch]:
    """Two micro-batches, the second lacking something, and both in one."""
    make = collator(distiller, case)
    first, second = rows(case, 100 * step, ""), rows(case, 100 * step + 1, without)
    return [make(first), make(second)], make([*first, *second])
