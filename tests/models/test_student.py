"""What the student computes does not depend on its neighbours in a batch, and a rank without audio stays in step."""

from __future__ import annotations

import numpy as np
import torch

from speechkd.losses.positions import predicting_positions
from speechkd.models.encoder import LayerMix
from speechkd.models.exported import DistilledStudent
from speechkd.models.lora import LoraConfig, lora_layers
from speechkd.models.prompt import Reading
from speechkd.models.student import Student
from speechkd.models.student_config import StudentConfig
from tests.models.conftest import build


def _clip(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)


def test_logits_do_not_depend_on_padding_or_neighbours(distilled: DistilledStudent) -> None:
    clips, questions = [_clip(0.4), _clip(1.7, 1)], ["What language is spoken?", "Say more about the speaker, please."]
    responses = [[5, 6, 7], [8, 9]]
    together = distilled.batch(clips, questions, responses)
    logits_TV = distilled.logits(together, predicting_positions(together.response_T))
    for index, rows in enumerate((slice(0, 3), slice(3, 5))):
        alone = distilled.batch(clips[index : index + 1], questions[index : index + 1], responses[index : index + 1])
        own_TV = distilled.logits(alone, predicting_positions(alone.response_T))
        torch.testing.assert_close(logits_TV[rows], own_TV, atol=1e-4, rtol=1e-4)


def test_the_answer_depends_on_the_audio_in_its_own_place(distilled: DistilledStudent) -> None:
    """Swapping two clips swaps the logits: no clip reaches another's positions."""
    one, two = _clip(0.8, 1), _clip(0.8, 2)
    both = distilled.batch([one, two], ["A?", "A?"], [[5], [5]])
    swapped = distilled.batch([two, one], ["A?", "A?"], [[5], [5]])
    predict_T = predicting_positions(both.response_T)
    first, second = distilled.logits(both, predict_T), distilled.logits(swapped, predict_T)
    torch.testing.assert_close(first, second.flip(0))
    assert (first[0] - first[1]).abs().max() > 1e-3


def test_a_batch_without_audio_runs_the_same_modules_and_gives_zero_gradients(distilled: DistilledStudent) -> None:
    """Text-only examples and an empty micro-batch: encoder and projector run, their gradients are zero and not absent."""
    student, calls = distilled.student, []
    hooks = [m.register_forward_hook(lambda m, i, o: calls.append(type(m).__name__)) for m in student.modules()]
    try:
        order = []
        for clips, responses in (([_clip(0.5)], [[5, 6]]), ([None], [[5, 6]])):
            batch = distilled.batch(clips, ["What?"], responses)
            calls.clear()
            student.zero_grad()
            student(batch, predicting_positions(batch.response_T)).sum().backward()
            order.append(list(calls))
            if clips[0] is None:
                assert all(p.grad is not None and not p.grad.any() for _, p in student.trainable())
        empty = distilled.collator([])
        calls.clear()
        hidden_TD = student(empty, predicting_positions(empty.response_T))
        (hidden_TD * empty.mask_T[:, None]).sum().backward()
        order.append(list(calls))
        assert order[0] == order[1] == order[2]
        assert empty.examples == 0 and not empty.mask_T.any()
        assert all(torch.isfinite(p.grad).all() for _, p in student.trainable() if p.grad is not None)
    finally:
        for hook in hooks:
            hook.remove()


def test_only_mix_and_projector_train(distilled: DistilledStudent) -> None:
    names = {name for name, _ in distilled.student.trainable()}
    assert names == {"mix.logits_L"} | {f"projector.{part}_{what}" for part in ("in", "out") for what in ("weight", "bias")}


def test_a_student_on_the_last_layer_learns_no_mix(distilled: DistilledStudent) -> None:
    whole = distilled.student
    config = StudentConfig(encoder="", llm="", projector={"kind": "linear", "pool": 4}, encoder_states="last")
    made = Student(whole.encoder.encoder, whole.llm.lm, config)
    assert {name for name, _ in made.trainable()} == {"projector.linear.weight", "projector.linear.bias"}
    states = tuple(torch.full((1, 2, 3), float(i)) for i in range(made.encoder.layers))
    assert torch.equal(made.mix(states), states[-1])


def test_greedy_answers_are_the_argmax_of_the_training_path(distilled: DistilledStudent) -> None:
    """Left-padded generation with a cache and right-padded training forward agree token by token."""
    clips, questions = [_clip(0.4), _clip(1.2, 1)], ["What language is spoken?", "Describe the audio."]
    stop = distilled.prompt.end_of_turn
    answers = distilled.student.generate(distilled.batch(clips, questions), 5, stop)
    for clip, question, answer in zip(clips, questions, answers, strict=True):
        scored = distilled.batch([clip], [question], [[*answer, stop]])
        greedy = distilled.logits(scored, predicting_positions(scored.response_T)).argmax(-1).tolist()
        assert greedy[: len(answer)] == answer


def test_the_layer_mix_is_a_convex_combination(distilled: DistilledStudent) -> None:
    mix = distilled.student.mix
    states = tuple(torch.full((1, 2, 3), float(i)) for i in range(distilled.student.encoder.layers))
    assert torch.allclose(mix(states), torch.full((1, 2, 3), (len(states) - 1) / 2))


def test_normalised_layers_weigh_alike_whatever_their_scale() -> None:
    states = tuple(torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    mix = LayerMix(3, normalise=True)
    louder = (states[0] * 100 + 7, states[1], states[2])
    torch.testing.assert_close(mix(louder), mix(states), atol=1e-4, rtol=1e-4)


def test_a_student_reads_what_its_llm_reads_until_lora_says_otherwise() -> None:
    """The text ability that an evaluation asks for is that of the student as trained, LoRA on."""
    facts = [
        {"language": "german", "gender": "male", "rate": "slow", "transcript": "eins zwei"},
        {"language": "turkish", "gender": "female", "rate": "fast", "transcript": "bir iki"},
    ]
    reading = Reading(form="json", fields=["language", "gender", "rate", "transcript"])
    asked = ["What language is spoken?", "Is the speaker male or female?"]
    distilled = build(LoraConfig(targets=["q_proj", "v_proj"]))
    assert distilled.read(facts, asked, reading, 8) == ["german", "female"]
    with torch.no_grad():
        for layer in lora_layers(distilled.student).values():
            layer.lora_B.normal_(0, 0.5)
    assert distilled.read(facts, asked, reading, 8) != ["german", "female"]
