"""The summary of one task: every system's score, how sure the student's is, and what it is beside its controls, parsers and groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean

from speechkd.core.types import Metadata
from speechkd.data.cards import Task
from speechkd.evaluation.controls import asked_alike, chance
from speechkd.evaluation.figures import class_figures, overlap_figures
from speechkd.evaluation.grading import Score, by_every_parser, grade, summarise
from speechkd.evaluation.intervals import interval
from speechkd.evaluation.permutation import Null, permutation_null, reference_units, units_of
from speechkd.evaluation.questions import EvaluationConfig, Question
from speechkd.evaluation.runner import Prediction
from speechkd.evaluation.scorers import Grade
from speechkd.evaluation.slices import by_group, refusals, speakers

SHUFFLED = "shuffled"
"""System of the first derangement; the others are `shuffled-2` ..."""
TEACHER = "teacher"
"""System of the teachers' stored answers, the first that answers a question; with several, `teacher:ROLE` is each one's"""
Row = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSummary:
    """One task of one corpus, with all systems' answers to it."""

    config: EvaluationConfig
    name: str
    task: Task
    asked: Sequence[Question]
    """this task's questions, on all splits"""
    predictions: Mapping[str, Sequence[Prediction]]
    """system -> its answers to any tasks"""

    def row(self) -> Row:
        """The numbers that `summary.json` has always had, and beside them the groups that `_details` makes."""
        (main_label, main), *others = self.config.splits.items()
        student = self._score("student", main)
        row: Row = {
            "student": student.value if student else None,
            "n": student.n if student else 0,
            "unparsable": student.unparsable if student else 0,
        }
        for label, split in others:
            found = self._score("student", split)
            row |= {
                label: found.value if found else None,
                f"{label}_n": found.n if found else 0,
                f"{label}_unparsable": found.unparsable if found else 0,
            }
        for system in (TEACHER, "untrained", *(["reads"] if "reads" in self.predictions else [])):
            found = self._score(system, main)
            row |= {system: found.value if found else None, f"{system}_unparsable": found.unparsable if found else None}
        on_main = [q for q in self.asked if q.split == main]
        row |= self._shuffled(main, on_main)
        row["chance"] = chance(on_main, self.task)
        row["splits"] = {main_label: main, **dict(others)}
        return row | self._details(main, self.config.splits, row[SHUFFLED])

    def _given(self, system: str, split: str) -> list[Prediction]:
        return [p for p in self.predictions.get(system, ()) if p.task == self.name and p.split == split]

    def _grades(self, given: Sequence[Prediction]) -> list[Grade]:
        return grade(given, {self.name: self.task})

    def _score(self, system: str, split: str) -> Score | None:
        return summarise(self._grades(self._given(system, split)))

    def _shuffled(self, main: str, on_main: Sequence[Question]) -> Row:
        """The student's score with other clips' audio: over all pairings where they are known, else the mean of the derangements."""
        if not self.config.controls:
            return {SHUFFLED: None, "shuffled_unparsable": None}
        given = self._given("student", main)
        if on_main and asked_alike(on_main):
            null = self._null(given)
            row: Row = {SHUFFLED: null.expected if null else None, "shuffled_unparsable": sum(not g.parsed for g in self._grades(given))}
            return row | {"permutation": asdict(null) if null else None}
        systems = [system for system in self.predictions if system.partition("-")[0] == SHUFFLED]
        scores = [score for system in systems if (score := self._score(system, main)) is not None]
        values = [score.value for score in scores]
        return {
            SHUFFLED: mean(values) if values else None,
            "shuffled_unparsable": max((score.unparsable for score in scores), default=None),
            "derangements": values,
        }

    def _null(self, given: Sequence[Prediction]) -> Null | None:
        answers = units_of(self.task.kind, [p.answer for p in given], self.task.choices)
        return permutation_null(answers, reference_units(self.task.kind, [p.reference for p in given]))

    def _details(self, main: str, splits: Mapping[str, str], shuffled: object) -> Row:
        metadata = {q.sample.key: q.sample.metadata for q in self.asked}
        intervals = {}
        for label, split in splits.items():
            of_split = self._given("student", split)
            intervals[label] = _intervals(of_split, self._grades(of_split), metadata)
        row: Row = {"intervals": intervals}
        given = self._given("student", main)
        grades = self._grades(given)
        sure = next(iter(intervals.values()))
        lows = [low for low, _ in sure.values()]
        row["hears"] = min(lows) > shuffled if lows and isinstance(shuffled, float) else None
        row["counts"] = {"right": sum(g.right for g in grades)}
        row |= _edits(self.task, grades) | self._figures(given, grades)
        row["parsers"] = {
            name: {"value": score.value, "unparsable": score.unparsable}
            for name, score in by_every_parser(given, self.task, metadata, self.config.parsers).items()
        }
        row["refusals"] = {system: refusals(self._given(system, main)) for system in self.predictions if self._given(system, main)}
        row["slices"] = by_group(given, grades, metadata, self.config.slices)
        row["controls"] = self._scores_of(self.config.more_controls, main)
        roles = [system for system in self.predictions if system.startswith(f"{TEACHER}:")]
        return row | (
            {"teachers": {role.partition(":")[2]: value for role, value in self._scores_of(roles, main).items()}} if roles else {}
        )

    def _scores_of(self, systems: Sequence[str], split: str) -> dict[str, float]:
        scores = {system: self._score(system, split) for system in systems}
        return {system: score.value for system, score in scores.items() if score is not None}

    def _figures(self, given: Sequence[Prediction], grades: Sequence[Grade]) -> Row:
        if not given:
            return {}
        if self.task.kind == "choice":
            answers = [units[0] if units else None for units in units_of("choice", [p.answer for p in given], self.task.choices)]
            references = [units[0] if units else "" for units in reference_units("choice", [p.reference for p in given])]
            return {"figures": class_figures(references, answers)}
        if self.task.choices:
            return {}
        return {"figures": overlap_figures([p.reference for p in given], [p.answer for p in given])}


def _edits(task: Task, grades: Sequence[Grade]) -> Row:
    """What was wrong, where answers have several units; an unparsable answer is all deletions."""
    if task.kind == "choice":
        return {}
    names = ("substitutions", "deletions", "insertions", "total")
    return {"edits": {name: sum(getattr(g, name) for g in grades) for name in names}}


def _intervals(given: Sequence[Prediction], grades: Sequence[Grade], metadata: Mapping[str, Metadata]) -> dict[str, list[float]]:
    """95 % intervals by what is drawn: `clips`, and `speakers` where clips name theirs."""
    groups = {"clips": [p.key for p in given], "speakers": speakers(given, metadata)}
    found = {name: interval(grades, names) for name, names in groups.items() if names}
    return {name: list(pair) for name, pair in found.items() if pair is not None}
