"""Speech-LLM teachers against transformers' own forward of Qwen2-Audio, and against the exported student itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.data.columns.signals import SignalsConfig, decode
from speechkd.models.exported import load_student, load_tokenizer
from speechkd.models.lora import LoraConfig
from speechkd.models.prompt import Prompt
from speechkd.teachers import TEACHERS
from speechkd.teachers.base import Answer, Clip, Request
from speechkd.teachers.hf_audio import Qwen2AudioModel
from speechkd.teachers.speech_llm import SpeechLlmTeacher
from tests.losses.equations import audio_attention
from tests.teachers.speech_models import LLM, SECONDS, TEMPLATE, write_speech_llm, write_student

EVERYTHING = {"topk": {"k": 8, "bits": 32}, "hidden": {"layers": [1, 2], "dtype": "float32"}, "attention": {}}


@pytest.fixture(scope="module")
def speech_llm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_speech_llm(tmp_path_factory.mktemp("qwen2_audio")))


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    """The student's."""
    return Prompt(TEMPLATE, load_tokenizer(LLM))


def teacher(backend: str, model: str, prompt: Prompt, **changes: Any) -> SpeechLlmTeacher:
    part = TEACHERS.get(backend)
    settings = {"backend": backend, "model": model, "max_new_tokens": 12, "batch_size": 4, **changes}
    settings |= {} if backend == "snapshot" else {"dtype": "float32"}
    made = part(part.Config.model_validate(settings), prompt)
    assert isinstance(made, SpeechLlmTeacher)
    return made


def asked(count: int = 5) -> list[Request]:
    """Clips of different lengths and sounds, two questions."""
    out = []
    for number in range(count):
        samples = 4_000 + 5_111 * number
        wave = np.random.default_rng(number).normal(0, 0.2, samples).astype(np.float32)
        question = "What language is spoken?" if number % 2 else "Describe it."
        out.append(Request(f"c{number}", "open-0", question, {}, clip=Clip(samples, lambda wave=wave: wave)))  # type: ignore[misc]
    return out


def whole(model: str, prompt: Prompt, request: Request) -> tuple[Any, Any]:
    """The model and its inputs as transformers' own processor makes them of text and clip."""
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    processor = AutoProcessor.from_pretrained(model)
    text = prompt._conversation.before_answer(prompt._message(request.question, "<|audio_bos|><|AUDIO|><|audio_eos|>"))
    assert request.clip is not None
    inputs = processor(text=[text], audio=[request.clip.load()], sampling_rate=16_000, return_tensors="pt")
    return Qwen2AudioForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval(), inputs


def test_a_speech_llm_answers_as_transformers_own_call_does(speech_llm: str, prompt: Prompt) -> None:
    """In batches with padding on both sides, and one by one through the processor: the same tokens; other clips, other answers."""
    hearing = teacher("hf_audio", speech_llm, prompt)
    requests = asked()
    answers = hearing.answer(requests)
    for request, answer in zip(requests, answers, strict=True):
        model, inputs = whole(speech_llm, prompt, request)
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=prompt.end_of_turn, pad_token_id=0)
        tokens = out[0, inputs["input_ids"].shape[1] :].tolist()
        assert answer.tokens == tokens and answer.prompt_tokens == inputs["input_ids"].shape[1]
        assert answer.stop == ("eos" if tokens[-1] == prompt.end_of_turn else "length") and answer.text == prompt.decode(tokens)
    assert len({tuple(answer.tokens) for answer in answers}) >= 4, "they hear"
    assert [a.tokens for a in hearing.answer(requests[::-1])[::-1]] == [a.tokens for a in answers]


def test_signals_of_a_speech_llm_are_its_own_forwards(speech_llm: str, prompt: Prompt) -> None:
    """Top-k, states and last-layer attention behind the clip, beside one pass of the whole model over processor, clip and response."""
    hearing = teacher("hf_audio", speech_llm, prompt, signals=EVERYTHING)
    requests = asked()
    answers = [Answer("x", prompt.answer("german or french"[: 3 + 3 * n]), 9, "eos") for n in range(len(requests))]
    store = SignalsConfig.model_validate(EVERYTHING)
    vocabulary = hearing.config.output_width()
    for request, answer, found in zip(requests, answers, hearing.score(requests, answers), strict=True):
        model, inputs = whole(speech_llm, prompt, request)
        model.set_attn_implementation("eager")
        prompted, T = inputs["input_ids"].shape[1], len(answer.tokens)
        audio_S = inputs["input_ids"][0] == model.config.audio_token_id
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([answer.tokens])], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            out = model(**inputs, output_hidden_states=True, output_attentions=True)
        got = decode(store, store.names, found, T, vocabulary)
        logp_TV = out.logits[0, prompted - 1 : -1].float().log_softmax(1)
        best = logp_TV.topk(8)
        assert torch.equal(got.ids_TK.long(), best.indices.sort(1).values)
        torch.testing.assert_close(got.logp_TK, logp_TV.gather(1, got.ids_TK.long()), atol=2e-4, rtol=1e-4)
        for place, layer in enumerate((1, 2)):
            torch.testing.assert_close(got.hidden_TLE[:, place], out.hidden_states[layer][0, prompted - 1 : -1], atol=2e-3, rtol=1e-3)
        rows_BHRQ = out.attentions[-1][:, :, prompted:][:, :, :, torch.nonzero(audio_S)[:, 0]]
        Q = rows_BHRQ.shape[3]
        assert got.attention_CQ[0].shape == (Q,) and Q > 5
        torch.testing.assert_close(got.attention_CQ[0], rows_BHRQ.mean(dim=(1, 2))[0], atol=1e-5, rtol=1e-3)
        weights = audio_attention(rows_BHRQ, torch.ones(1, T, dtype=torch.bool), torch.ones(1, Q, dtype=torch.bool))
        torch.testing.assert_close(got.attention_CQ[0] / got.attention_CQ[0].sum(), weights[0].float(), atol=1e-5, rtol=1e-3)


def test_positions_are_known_from_the_length_alone(speech_llm: str) -> None:
    config = TEACHERS.get("hf_audio").Config.model_validate({"backend": "hf_audio", "model": speech_llm, "dtype": "float32"})
    audio_model = Qwen2AudioModel(config, TEMPLATE)  # type: ignore[arg-type]
    lengths = [161, 800, 1_599, 1_600, 1_601, 7_777, 15_999, 16_000, 31_840, 32_000]
    audio = audio_model.encode_audio([np.ones(samples, np.float32) for samples in lengths])
    assert [len(audio_QE) for audio_QE in audio] == [audio_model.positions(samples) for samples in lengths]
    assert abs(audio_model.positions(16_000) - 25) <= 1


def test_what_is_not_heard_is_not_answered(speech_llm: str, prompt: Prompt) -> None:
    hearing = teacher("hf_audio", speech_llm, prompt)
    [request] = asked(1)
    assert hearing.accepts(request) and not hearing.accepts(Request("t", "open-0", "What?", {}))
    assert not hearing.accepts(Request("t", "written", "What?", {}, clip=request.clip))
    long = np.zeros(SECONDS * 16_000 + 1, np.float32)
    cut, fine = hearing.answer([Request("l", "open-0", "What?", {}, clip=Clip(long.size, lambda: long)), request])
    assert cut.stop == "error" and not cut.tokens and "this teacher hears 2.0 s" in cut.reason and fine.tokens
    assert hearing.score([request], [cut]) == [{}]


def test_tokens_that_are_not_the_students_are_refused(speech_llm: str, tmp_path: Path) -> None:
    """One id, two tokens: at once. A stored response whose span is other text to the teacher: when it is scored."""
    other = load_tokenizer(LLM)
    other.add_tokens(["<another>"])
    with pytest.raises(InputError, match=r"has `<\|audio_bos\|>` at id \d+, the student has `<another>`"):
        teacher("hf_audio", speech_llm, Prompt(TEMPLATE, other))
    student = load_tokenizer(speech_llm)
    student.add_tokens(["Bonjour"])
    hearing = teacher("hf_audio", speech_llm, Prompt(TEMPLATE, student), signals={"topk": {"k": 2}})
    wrong = Answer("Bonjour", [student.convert_tokens_to_ids("Bonjour")], 9, "length")
    with pytest.raises(InputError, match="the answer of `c0.open-0` is `Bonjour` to the student and `` to teacher"):
        hearing.score(asked(1), [wrong])


def test_an_answer_that_the_student_cannot_spell_is_a_row_with_a_reason(speech_llm: str, prompt: Prompt) -> None:
    hearing = teacher("hf_audio", speech_llm, prompt)
    mark = hearing.audio_model.prompt.tokenizer.convert_tokens_to_ids("<|audio_eos|>")
    answer = hearing._answer([5, mark, prompt.end_of_turn], 20)
    assert answer.stop == "error" and "a token that the student lacks: <|audio_eos|>" in answer.reason and not answer.tokens


def test_another_kind_of_model_is_one_line(prompt: Prompt) -> None:
    with pytest.raises(InputError, match="no processor of a speech LLM at|must be of type qwen2_audio") as caught:
        teacher("hf_audio", LLM, prompt)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2, targets=["q_proj", "down_proj"], scope="audio")])
def test_a_snapshot_answers_as_the_export_does(tmp_path: Path, prompt: Prompt, lora: LoraConfig | None) -> None:
    folder = write_student(tmp_path / "export", lora)
    snapshot, student = teacher("snapshot", str(folder), prompt, signals=EVERYTHING), load_student(folder)
    requests = asked()
    answers = snapshot.answer(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert request.clip is not None
        assert student.answer([request.clip.load()], [request.question], 12) == [answer.text]
    store = SignalsConfig.model_validate(EVERYTHING)
    for request, answer, found in zip(requests, answers, snapshot.score(requests, answers), strict=True):
        assert request.clip is not None
        batch = student.batch([request.clip.load()], [request.question], [answer.tokens])
        logp_TV = student.logits(batch, batch.response_T - 1).float().log_softmax(1)
        got = decode(store, store.names, found, len(answer.tokens), snapshot.config.output_width())
        torch.testing.assert_close(got.logp_TK, logp_TV.gather(1, got.ids_TK.long()), atol=2e-3, rtol=1e-3)
        assert got.attention_CQ[0].shape == (int(batch.clips.mask_CQ.sum()),) and 0 < got.attention_CQ[0].sum() < 1


def test_a_snapshot_of_another_template_is_refused(tmp_path: Path, prompt: Prompt) -> None:
    folder = write_student(tmp_path / "export", prompt="{{ question }} {{ audio }}")
    with pytest.raises(InputError, match="trained with another prompt template"):
        teacher("snapshot", str(folder), prompt)
    config = TEACHERS.get("snapshot").Config.model_validate({"backend": "snapshot", "model": str(folder)})
    before = config.fingerprint()
    assert before and config.positions_per_s() == 10.0
    (folder / "projector.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="its digest differs"):
        config.fingerprint()
