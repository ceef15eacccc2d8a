"""A student made of a speech LLM's own parts is that speech LLM: the logits of transformers' own model, for clips and text together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.losses.positions import predicting_positions
from speechkd.models.architectures import meta_causal_lm, meta_encoder
from speechkd.models.collate import Collator, Row
from speechkd.models.encoder import Features
from speechkd.models.pretrained import load_causal_lm, load_encoder
from speechkd.models.projectors import PROJECTORS
from speechkd.models.projectors.init_from import check_init_from, init_projector
from speechkd.models.student import Student
from speechkd.models.student_config import StudentConfig

V, AUDIO = 97, 96
SIZES = {"num_mel_bins": 8, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 20}
TEXT = {"vocab_size": V, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def qwen2_audio() -> Any:
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    text = TEXT | {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": False}
    config = Qwen2AudioConfig(audio_config=SIZES | {"max_source_positions": 100}, text_config=text, audio_token_index=AUDIO)
    return Qwen2AudioForConditionalGeneration(config)


def omni_thinker(vocabulary: int = V, layers: int = 2) -> Any:
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 1]}
    config = Qwen2_5OmniThinkerConfig(
        audio_config=SIZES | {"output_dim": 24, "n_window": 20},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 24},
        text_config=TEXT | {"vocab_size": vocabulary, "num_hidden_layers": layers, "num_key_value_heads": 2, "rope_parameters": rope},
        audio_token_index=vocabulary - 1,
        image_token_index=vocabulary - 2,
        video_token_index=vocabulary - 3,
        audio_start_token_id=1,
        audio_end_token_id=2,
        vision_start_token_id=vocabulary - 4,
        vision_end_token_id=vocabulary - 5,
    )
    return Qwen2_5OmniThinkerForConditionalGeneration(config)


def published_names(folder: Path) -> None:
    """Rewrite a thinker's folder as Qwen2.5-Omni is published: all of it below `thinker.`, beside a talker, under the whole's config."""
    from safetensors.torch import load_file, save_file
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniThinkerConfig

    tensors = load_file(folder / "model.safetensors")
    named = {f"thinker.{name.replace('model.language_model.', 'model.')}": tensor for name, tensor in tensors.items()}
    named = {name.replace("thinker.model.audio_tower.", "thinker.audio_tower."): tensor for name, tensor in named.items()}
    named = {name.replace("thinker.model.visual.", "thinker.visual."): tensor for name, tensor in named.items()}
    named["talker.model.norm.weight"] = torch.ones(3)
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    Qwen2_5OmniConfig(thinker_config=Qwen2_5OmniThinkerConfig.from_pretrained(folder).to_dict()).save_pretrained(folder)


MODELS = {"qwen2_audio": qwen2_audio, "qwen2_5_omni_thinker": omni_thinker, "qwen2_5_omni": omni_thinker}


@pytest.fixture(scope="module", params=list(MODELS))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A speech LLM with random weights, saved by transformers, and the model itself."""
    torch.manual_seed(0)
    model = MODELS[request.param]().eval()
    for param in model.parameters():  # far from the start, so that every part has something to say
        param.data += 0.1 * torch.randn(param.shape)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    if request.param == "qwen2_5_omni":
        published_names(folder)
    return folder, model


def extractor(seconds: int) -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=8, chunk_length=seconds)


def student_of(folder: Path) -> Student:
    projector = {"kind": "linear", "pool": 1, "init_from": str(folder)}
    config = StudentConfig(encoder=str(folder), llm=str(folder), projector=projector, encoder_states="last")
    student = Student(load_encoder(str(folder), torch.float32), load_causal_lm(str(folder), torch.float32), config)
    init_projector(student.projector)
    return student.eval()


def theirs(model: Any, clips: list[np.ndarray], texts: list[tuple[list[int], list[int]]], seconds: int) -> list[torch.Tensor]:
    """Logits of transformers' model, one example at a time, each clip with silence up to a whole position behind it."""
    out = []
    for clip, (before, after) in zip(clips, texts, strict=True):
        positions = -(-clip.size // 640)
        padded = np.pad(clip, (0, positions * 640 - clip.size))
        got = extractor(seconds)(padded, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
        ids = torch.tensor([[*before, *[AUDIO] * positions, *after]])
        given = {"input_features": got["input_features"], "feature_attention_mask": got["attention_mask"]}
        with torch.no_grad():
            out.append(model(input_ids=ids, attention_mask=torch.ones_like(ids), **given).logits[0])
    return out


def test_a_student_of_its_parts_says_what_the_whole_says(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    generator = np.random.default_rng(1)
    clips = [generator.normal(size=size).astype(np.float32) for size in (6_400, 20_011)]  # the second ends within a position
    texts = [([5, 3, 1], [2, 5, 6, 7]), ([8, 1], [2, 10, 11])]  # 1 and 2 are a thinker's marks around a clip
    student = student_of(folder)
    collate = Collator(Features(extractor(2)), student.encoder.hearing, student.projector.positions)
    batch = collate([Row(before, [], after, clip) for clip, (before, after) in zip(clips, texts, strict=True)])
    with torch.no_grad():
        ours = student.llm.logits(student(batch, predicting_positions(batch.response_T))).split([len(after) for _, after in texts])
    for mine, whole, (_, after) in zip(ours, theirs(model, clips, texts, 2), texts, strict=True):
        torch.testing.assert_close(mine, whole[-len(after) - 1 : -1].float(), atol=2e-5, rtol=1e-5)


def test_a_clip_has_as_many_positions_as_it_begins_and_a_dry_run_needs_no_weights(saved: tuple[Path, Any]) -> None:
    folder = str(saved[0])
    config = StudentConfig(encoder=folder, llm=folder, projector={"kind": "linear", "pool": 1}, encoder_states="last")
    with torch.device("meta"):
        planned = Student(meta_encoder(folder), meta_causal_lm(folder), config)
    assert {name for name, _ in planned.trainable()} == {"projector.linear.weight", "projector.linear.bias"}
    assert [planned.encoder.hearing.frames(samples) for samples in (1, 640, 641, 16_000)] == [1, 1, 2, 25]


def test_only_a_projector_of_the_same_widths_starts_from_it(saved: tuple[Path, Any], tmp_path: Path) -> None:
    made: Any = PROJECTORS.get("linear")(PROJECTORS.get("linear").Config.model_validate({}), 16, 25)
    with pytest.raises(InputError, match="maps 16 to 24, the student's 16 to 25"):
        check_init_from(made, str(saved[0]))
    with pytest.raises(InputError, match="no speech LLM with a projector"):
        check_init_from(made, "standins/llm")
