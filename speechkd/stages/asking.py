"""Asks an export and its controls every question of an evaluation, in one language model at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from speechkd.core.files import digest
from speechkd.data.reader import Reader
from speechkd.evaluation.controls import Other, derangements, noise, silence
from speechkd.evaluation.questions import EvaluationConfig, Question
from speechkd.evaluation.runner import Ask, Audio, Prediction, Runner, heard, read
from speechkd.evaluation.summary import SHUFFLED
from speechkd.models.encoder import SAMPLE_RATE
from speechkd.models.exported import DistilledStudent, load_student, read_manifest
from speechkd.models.prompt import Reading
from speechkd.stages.inputs.corpora import Corpus
from speechkd.teachers.answers import AnswerJournal


def ask_all(
    config: EvaluationConfig, corpus: Corpus, asked: Sequence[Question], exported: Path, out: Path, partition: tuple[int, int]
) -> dict[str, list[Prediction]] | None:
    """System -> its answers: the student on all splits; what it reads, and its controls, on the main split.

    None while other partitions owe answers. Raises InputError for a question and clip that leave the model no position for an answer.
    """
    journal = AnswerJournal(out / f"answers-{corpus.card.name}.jsonl")
    runner = Runner(journal=journal, batch_size=config.batch_size, partition=partition)
    on_main = [q for q in asked if q.split == next(iter(config.splits.values()))]
    base: list[object] = [read_manifest(exported).files, config.max_new_tokens]
    audio = _audio(Reader(corpus.shards))
    predictions: dict[str, list[Prediction] | None] = {}

    @cache
    def student() -> DistilledStudent:
        loaded = load_student(exported)
        for q in asked:
            loaded.check_length(q.instruction, round(q.sample.seconds * SAMPLE_RATE), f"`{q.sample.key}`, task {q.task}")
        return loaded

    def ask(system: str, how: Ask, questions: Sequence[Question], more: object = None) -> None:
        predictions[system] = runner.run(system, digest([*base, system, more]), how, questions)

    def hears(given: Audio) -> Ask:
        return heard(student, given, config.max_new_tokens)

    ask("student", hears(audio), asked)
    if config.reads is not None:
        reading = config.reads
        ask("reads", read(student, reading, config.max_new_tokens), on_main, reading.model_dump(mode="json"))
    for number, other in enumerate(derangements(on_main, config.derangements) if config.controls else [], 1):
        varied = [q for q in on_main if (q.task, q.split, q.sample.key) in other]
        clips = [other[q.task, q.split, q.sample.key].sample.key for q in varied]
        ask(SHUFFLED if number == 1 else f"{SHUFFLED}-{number}", hears(_others(audio, other)), varied, clips)
    ways: dict[str, Ask] = {
        "silence": hears(silence(audio)),
        "noise": hears(noise(audio)),
        "text_only": read(student, Reading(form="nothing"), config.max_new_tokens),
    }
    for control in config.more_controls:
        ask(control, ways[control], on_main)
    if config.controls:
        student.cache_clear()  # one language model in memory at a time
        untrained = cache(lambda: load_student(exported, weights=False))
        ask("untrained", heard(untrained, audio, config.max_new_tokens), on_main)
    complete = {system: given for system, given in predictions.items() if given is not None}
    return complete if len(complete) == len(predictions) else None


def _audio(reader: Reader) -> Audio:
    def of(question: Question) -> np.ndarray:
        samples_T = reader.audio(question.sample.row)
        assert samples_T is not None, "questions are asked only about clips"
        return samples_T

    return of


def _others(audio: Audio, other: Other) -> Callable[[Question], np.ndarray]:
    return lambda question: audio(other[question.task, question.split, question.sample.key])
