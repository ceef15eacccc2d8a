"""Miniatures: tables that count right, verdicts that a claim can lose, and files whose every variant can be run."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from scipy.stats import ttest_1samp

from speechkd.core.config import read_yaml
from speechkd.core.errors import InputError
from speechkd.data.cards import load_card
from speechkd.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAPERS = sorted(path.stem for path in (ROOT / "pipelines/miniatures").glob("*.yaml"))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "pipelines/miniatures")
    return importlib.import_module("tables")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "pipelines/miniatures")
    monkeypatch.chdir(ROOT)
    return importlib.import_module("run")


def test_intervals_are_students(tables: ModuleType) -> None:
    values = [3.0, 5.5, 4.0, 6.5]
    wanted = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert tables.half_interval(values) == pytest.approx((wanted.high - wanted.low) / 2)
    assert tables.interval(values) == "4.8 ± 2.5" and tables.interval([2.0]) == "2.0"


@pytest.mark.parametrize(
    ("differences", "says"),
    [
        ([2.0, 2.1, 1.9], "holds"),
        ([5.0, -1.0, 0.5], "direction holds, the interval includes 0"),
        ([-5.0, 1.0, 0.5], "does not hold"),
        ([0.0, 0.0, 0.0], "does not hold"),
        ([-2.0, -2.1, -1.9], "does not hold: the opposite does"),
        ([-3.0], "does not hold"),
        ([3.0], "direction holds, the interval includes 0"),
    ],
)
def test_a_verdict_can_be_lost(tables: ModuleType, differences: list[float], says: str) -> None:
    assert tables.verdict(differences) == says


def test_scores_of_a_summary(tables: ModuleType) -> None:
    tasks = {
        "a": {"student": 0.5, "unseen": 0.25, "reads": 1.0, "n": 4, "chance": 0.1},
        "b": {"student": 0.7, "unseen": None, "reads": 0.8},
        "c": {"student": 0.9, "unseen": 0.75},
    }
    heard = {"a": 50, "b": 70, "c": 90, "mean": 70, "two": 70}
    far = {"a, unseen": 25, "c, unseen": 75, "mean, unseen": 50, "two, unseen": 50}
    assert tables.scores_of(tasks, {"two": ["a", "c"]}) == pytest.approx(heard | far | {"a, read": 100, "b, read": 80, "mean, read": 90})


def test_differences_are_seed_by_seed(tables: ModuleType) -> None:
    """Seeds move both variants by 20 points and their difference by hardly any: only a paired judgement sees it."""
    low, high = [{"m": 40.0}, {"m": 60.0}, {"m": 50.0}], [{"m": 42.0}, {"m": 62.1}, {"m": 51.9}]
    text = tables.markdown(
        "p", tables.Judged("high is above low", [1, 2, 3], {"m": [("high", "low")]}, {"low": low, "high": high}, {"m": 9.0})
    )
    assert "| % right | before | low | high |" in text and "| m | 9.0 | 50.0 ± 24.8 | 52.0 ± " in text
    assert "| high above low | m | +2.0 ± 0.2 | holds |" in text


@pytest.mark.parametrize("paper", PAPERS)
def test_what_is_expected_is_measured(run: ModuleType, tables: ModuleType, paper: str) -> None:
    """Of both variants of each pair, whatever each of them is asked."""
    mini = run.load(paper)
    assert mini.expect and len(set(mini.seeds)) >= 3 and run.PILOT_SEED not in mini.seeds
    recipes = {name: load_recipe(ROOT / mini.recipe, [*mini.set, *sets]) for name, sets in mini.variants.items()}
    asked = {n: r.evaluation.tasks or list(load_card(ROOT / r.data.corpora[0].card).tasks) for n, r in recipes.items()}
    everything = {task for tasks in asked.values() for task in tasks}
    for measure, pairs in mini.expect.items():
        for name in {name for pair in pairs for name in pair}:
            evaluation = recipes[name].evaluation
            keys = {*evaluation.splits, *(["reads"] if evaluation.reads else [])}
            tasks = {task: dict.fromkeys(keys, 1.0) for task in asked[name]}
            assert measure in tables.scores_of(tasks, mini.means, everything), f"{name} is not measured on {measure}"


def test_a_variant_that_was_asked_less_has_no_mean(tables: ModuleType) -> None:
    """A mean over fewer tasks is another measure: it must not stand in the same row."""
    less = tables.scores_of({"a": {"student": 0.5}}, all_tasks=["a", "b"])
    whole = tables.scores_of({"a": {"student": 0.5}, "b": {"student": 0.7}}, all_tasks=["a", "b"])
    assert less == {"a": 50.0} and whole["mean"] == pytest.approx(60)
    text = tables.markdown("p", tables.Judged("x", [1], {"a": [("whole", "less")]}, {"less": [less], "whole": [whole]}))
    assert "| b | – | 70.0 |" in text and "| mean | – | 60.0 |" in text


@pytest.mark.parametrize("paper", PAPERS)
def test_the_overview_says_what_the_table_says(run: ModuleType, paper: str) -> None:
    folder = ROOT / "pipelines"
    table = (folder / f"miniatures/{paper}.md").read_text(encoding="utf-8")
    judged = [line for line in table.split("| expected |")[1].splitlines() if " above " in line]
    assert len(judged) == sum(
        len(pairs) for pairs in run.load(paper).expect.values()
    ), "the file expects something else than its table judged"
    link = f"](miniatures/{paper}.md) "
    overview = [line.split(link)[1] for line in (folder / "README.md").read_text(encoding="utf-8").splitlines() if link in line]
    assert overview == judged


def test_a_pilot_has_a_seed_of_its_own(run: ModuleType) -> None:
    mini = run.load("wong26a").pilot(["mix", "ift"])
    assert (mini.seeds, list(mini.variants)) == ([run.PILOT_SEED], ["ift", "mix"])
    assert all(set(pair) == {"mix", "ift"} for pairs in mini.expect.values() for pair in pairs)
    with pytest.raises(InputError, match="unknown variant `mxi`.*did you mean `mix`"):
        run.load("wong26a").pilot(["mxi"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"expect": {"mean": [["mix", "itf"]]}}, "unknown variant `itf`; .*did you mean `ift`"),
        ({"base": "start"}, "unknown need `start`"),
        ({"needs": {"x": {}}}, "either `recipe` or `script`"),
        ({"expcet": {}}, "did you mean `expect`"),
        ({"seeds": [1, 2, 9]}, "seed 9 is that of pilots"),
    ],
)
def test_a_wrong_file_is_one_line(run: ModuleType, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], says: str) -> None:
    monkeypatch.setattr(run, "read_yaml", lambda path: read_yaml(path) | change)
    with pytest.raises(InputError, match=says) as caught:
        run.load("wong26a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("paper", PAPERS)
def test_every_variant_can_be_planned(run: ModuleType, paper: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The dry run of the file as it ships; what stands on a run that is not there yet is loaded, and the run itself planned."""
    mini = run.load(paper)
    run.plan(run.Bench(mini, tmp_path, paper, 1, 2))
    message = capsys.readouterr()
    assert [line for line in message.err.splitlines() if line.startswith("── ")] == [
        *(f"── needs {name}" for name, need in mini.needs.items() if need.recipe),
        *(f"── {variant}" for variant in mini.variants),
    ]
    planned = message.out.count("regime      ")
    assert planned == len([n for n in mini.needs.values() if n.recipe]) + (0 if mini.needs else len(mini.variants))
