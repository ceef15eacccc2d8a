"""Parsers beside the strict scorer: the same figures as the tools and papers whose names they bear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jiwer
import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from speechkd.core.errors import InputError
from speechkd.data.cards import Task
from speechkd.evaluation.figures import class_figures, overlap_figures
from speechkd.evaluation.grading import STRICT, by_every_parser, grade, summarise
from speechkd.evaluation.runner import Prediction
from speechkd.evaluation.scorers.mmau import grade as mmau
from speechkd.evaluation.scorers.parsers import PARSERS, Asked, ParsersConfig
from speechkd.evaluation.scorers.pl_distill import grade as pl_distill
from speechkd.evaluation.scorers.voicebench import LETTERS, letter, read_templates
from speechkd.evaluation.scorers.whisper import grade as whisper

EMOTIONS = ["Neutral", "Happy", "Sad", "Angry", "Surprise", "Disgust", "Fear", "Calm"]
TEXTS = {
    "en": [("I'm twenty-two, colour blind", "I am 22 color blind"), ("um, it's Mr. Smith's", "it is mister smith's")],
    "de": [("Die Straße ist naß.", "die strasse ist nass"), ("Drei, drei, neun!", "drei drei")],
    "zh": [("今天天气很好", "今天，天气不好"), ("你好", "你们好吗")],
}


def asked(reference: str, choices: list[str], kind: str = "choice", language: str = "", key: str = "k") -> Asked:
    return Asked(key, kind, reference, choices, language)


@pytest.mark.parametrize("language", TEXTS)
def test_error_rates_are_those_of_jiwer_behind_whispers_normaliser(language: str) -> None:
    normalisers: dict[str, Callable[[str], str]] = {"en": EnglishTextNormalizer({}), "de": BasicTextNormalizer()}
    normalise = normalisers.get(language) or BasicTextNormalizer(split_letters=True)
    grades = [whisper(answer, asked(reference, [], "words", language), ParsersConfig()) for answer, reference in TEXTS[language]]
    score = summarise([found for found in grades if found is not None])
    answers, references = ([normalise(text) for text in texts] for texts in zip(*TEXTS[language], strict=True))
    assert score is not None and score.value == pytest.approx(1 - jiwer.wer(references, answers), abs=1e-12) and score.value < 1


def test_strict_words_are_one_less_jiwers_error_rate() -> None:
    pairs = [("drei drei neun", "drei drei"), ("eins", "eins zwei"), ("vier", "neun"), ("zwei zwei zwei", "zwei")]
    task = Task(instruction="?", field="f", kind="words")
    score = summarise(grade([Prediction("t", "s", str(i), "?", r, a) for i, (a, r) in enumerate(pairs)], {"t": task}))
    assert score is not None and score.value == pytest.approx(1 - jiwer.wer([r for _, r in pairs], [a for a, _ in pairs]))


def test_a_whisper_checkpoints_spelling_table_is_used(tmp_path: Path) -> None:
    table = tmp_path / "normalizer.json"
    table.write_text('{"colour": "color"}')
    found = whisper("colour", asked("color", [], "words", "English"), ParsersConfig(whisper_spelling=str(table)))
    plain = whisper("colour", asked("color", [], "words", "English"), ParsersConfig())
    assert found is not None and plain is not None and (found.points, plain.points) == (1, 0)
    table.write_text("[1]")
    with pytest.raises(InputError, match="no table of words"):
        whisper("a", asked("b", [], "words", "en"), ParsersConfig(whisper_spelling=f"{tmp_path}/./normalizer.json"))


@pytest.mark.parametrize(
    "answer, reference, right, known",
    [
        ("Happy", "Happy", True, True),
        ("JOY", "Happy", True, True),
        ("Angrily spoken", "Angry", True, True),
        ("angrily spoken", "Angry", False, False),
        ("I cannot tell", "Neutral", True, False),
        ("I cannot tell", "Calm", True, False),
        ("Neutral", "Calm", True, True),
        ("Calm", "Neutral", True, False),
        ("SURPRISED", "Surprise", True, True),
        ("DISGUSTED", "Disgust", False, False),
        ("Surprprise", "Surprise", True, True),
        ("Sad", "Happy", False, True),
    ],
)
def test_pl_distills_parser_makes_neutral_of_what_it_does_not_know(answer: str, reference: str, right: bool, known: bool) -> None:
    found = pl_distill(answer, asked(reference, EMOTIONS), ParsersConfig())
    assert found is not None and (bool(found.points), found.parsed) == (right, known)


@pytest.mark.parametrize(
    "answer, right",
    [("It is a CAT, I think.", True), ("cat or dog", False), ("a cat and a bird", True), ("", False), ("dog", False)],
)
def test_mmaus_parser_searches_the_answer(answer: str, right: bool) -> None:
    found = mmau(answer, asked("cat", ["cat", "dog"]), ParsersConfig())
    assert found is not None and bool(found.points) == right


@pytest.fixture
def mcq(tmp_path: Path) -> Path:
    """A file of the form of the benchmark's own; one that was run would leave a trace."""
    path = tmp_path / "mcq.py"
    body = f'open({str(tmp_path / "trace")!r}, "w")\nother = ["x"]\n\nclass M:\n    def f(self, r):\n'
    path.write_text(
        body + '        for t in ["the answer is [CHOICE]", "would choose [CHOICE]", " [CHOICE].", "([CHOICE])"]:\n            pass\n'
    )
    return path


@pytest.mark.parametrize(
    "answer, stated",
    [
        ("The answer is B because (a) is wrong", "B"),
        ("I would choose C, not the answer is A", "A"),
        ("<1> D) something", "D"),
        ("c", "C"),
        ("b: yes", "B"),
        ("None of them", None),
        ("", None),
    ],
)
def test_voicebenchs_templates_are_read_and_not_run(mcq: Path, answer: str, stated: str | None) -> None:
    assert letter(answer, read_templates(mcq)) == stated
    assert not (mcq.parent / "trace").exists()


def test_voicebench_draws_for_what_it_cannot_parse(mcq: Path) -> None:
    """A student that never answers has a quarter right there, and nothing by the strict score; every draw is counted as unparsable."""
    task = Task(instruction="?", field="f", kind="choice", choices=list(LETTERS))
    silent = [Prediction("t", "s", f"k{i}", "?", LETTERS[i % 4], "I do not know") for i in range(400)]
    scores = by_every_parser(silent, task, {p.key: {} for p in silent}, ParsersConfig(voicebench=str(mcq)))
    drawn = scores["voicebench_random"]
    assert 0.19 < drawn.value < 0.31 and drawn.unparsable == 400 and scores[STRICT].value == 0 == scores["mmau"].value
    assert scores == by_every_parser(silent, task, {p.key: {} for p in silent}, ParsersConfig(voicebench=str(mcq)))
    assert "voicebench_random" not in by_every_parser(silent, task, {p.key: {} for p in silent}, ParsersConfig())


@pytest.mark.parametrize("text, error", [("x = (", "no Python"), ("a = [1, 2]\nb = ['no hole']", "no list of templates")])
def test_a_file_without_templates_is_refused(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "m.py").write_text(text)
    with pytest.raises(InputError, match=error):
        read_templates(tmp_path / "m.py")


def test_every_parser_says_which_tasks_it_is_made_for() -> None:
    digits = asked("one", [], "words")
    assert [name for name in PARSERS if PARSERS.get(name)("one", digits, ParsersConfig()) is not None] == ["whisper"]
    animals = asked("cat", ["cat", "dog"])
    assert [name for name in PARSERS if PARSERS.get(name)("cat", animals, ParsersConfig()) is not None] == ["mmau"]


def test_class_figures_are_scikit_learns_and_an_unparsable_answer_is_right_for_no_class() -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score

    references = ["a", "a", "a", "b", "b", "c"]
    answers = ["a", "a", "b", "b", "a", "c"]
    found = class_figures(references, answers)
    assert found["wa"] == pytest.approx(4 / 6) and found["ua"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["ua"] == pytest.approx(balanced_accuracy_score(references, answers))
    assert found["macro_f1"] == pytest.approx(f1_score(references, answers, average="macro"))
    less = class_figures(references, [None, *answers[1:]])
    assert less["wa"] == pytest.approx(3 / 6) and less["ua"] == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert less["macro_f1"] == pytest.approx((2 * 1 / (2 + 3) + 1 / 2 + 1) / 3)


def test_bleu_and_chrf_are_sacrebleus() -> None:
    import sacrebleu

    references = ["the cat sat on the mat", "there is a dog"]
    answers = ["the cat is on the mat", "there is the dog in a house"]
    found = overlap_figures(references, answers)
    assert found["bleu"] == sacrebleu.corpus_bleu(answers, [references]).score and "tok:13a" in str(found["bleu_signature"])
    assert found["chrf"] == sacrebleu.corpus_chrf(answers, [references]).score
    assert "tok:char" in str(overlap_figures(["今天天气很好"], ["今天天气不好"])["bleu_signature"])
