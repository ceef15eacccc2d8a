"""A run folder says by which recipe it was trained: training, export and evaluation refuse another, naming the first key that differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechkd import cli
from speechkd.core.errors import InputError
from speechkd.core.files import sha256_bytes, sha256_file, write_json
from speechkd.engine.checkpoint import COMMIT, FILES, FORMAT, latest
from speechkd.engine.checkpoint_saver import Retention
from speechkd.recipe import Recipe, load_recipe
from speechkd.stages.export import _prompt
from speechkd.stages.run import conclude
from speechkd.stages.run_folder import CHECKPOINTS, NOT_THE_STUDENTS, RECIPE, prepare_run, run_recipe, same_recipe, second_place

ROOT = Path(__file__).parents[2]
NAME = "pipelines/meta_prompt_kd.yaml"
OTHERS = {
    "student.projector.stack=9": r"`student\.projector\.stack` is `9`, there `\d+`",
    "student.projector={kind: linear}": r"`student\.projector\.kind` is `\"linear\"`, there `\"mlp_stack\"`",
    "student.lora={r: 2, targets: [q_proj]}": r"`student\.lora` is `\{.*`, there not set",
    "student.llm=elsewhere/llm": r"`student\.llm` is `\"elsewhere/llm\"`, there `\"standins/llm\"`",
    "train.regime=ift": r"`train\.regime` is `\"ift\"`, there `\"kd\"`",
    "train.spike={window: 64}": r"`train\.spike` is `\{.*64\}`, there not set",
    "seed=5": r"`seed` is `5`, there `1`",
    "data.corpora.0.weights={kd: 0.5}": r"`data\.corpora\.0\.weights\.kd` is `0\.5`, there not set",
}
SAME = [
    "evaluation.limit=3",
    "evaluation.controls=false",
    "tracking.uri=sqlite:///m.db",
    "data.root=elsewhere",
    "train.log_every=7",
    "train.checkpoint_every=7",
    "train.keep_checkpoints=7",
    "train.keep_every=7",
    "train.copy_to=elsewhere",
    "train.stall_s=7",
    "train.prefetch_gib=7",
    "train.peak_tflops=7",
    "train.accept_grown_data=true",
    "paper=x",
]


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def recipe(runs: Path, *sets: str) -> Recipe:
    return load_recipe(Path(NAME), [f"runs={runs}", "train.regime=kd", *sets])


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run folder as training leaves it, before its first checkpoint."""
    first = recipe(tmp_path)
    prepare_run(first.run_dir, first, "plan", "auto")
    return first.run_dir


@pytest.mark.parametrize("other", OTHERS)
def test_the_first_key_that_differs_is_named(other: str, trained: Path) -> None:
    given = recipe(trained.parent, other)
    with pytest.raises(InputError, match=f"was trained by another recipe: {OTHERS[other]}; give .*recipe.yaml.*another `name`"):
        same_recipe(trained, given)
    with pytest.raises(InputError, match=rf"belongs to another recipe \({OTHERS[other]}\): use another `name`"):
        prepare_run(trained, given, "plan", "auto")


@pytest.mark.parametrize("change", SAME)
def test_what_trains_no_other_student_may_differ(change: str, trained: Path) -> None:
    same_recipe(trained, recipe(trained.parent, change))
    prepare_run(trained, recipe(trained.parent, change), "plan", "auto")


def test_the_recipe_of_the_folder_is_always_right(trained: Path) -> None:
    same_recipe(trained, load_recipe(trained / RECIPE))
    assert run_recipe(trained).digest() == recipe(trained.parent).digest()


@pytest.mark.parametrize(
    "changes",
    [
        ["train.regimes.again=[{name: kd, steps: 1700, mix: {kd: 1}}]", "train.regime=again"],
        ["deepspeed=ds_configs/zero2.json"],
        ["student.config_root=pipelines/configs"],
    ],
)
def test_what_only_says_the_same_otherwise_is_exported(changes: list[str], trained: Path) -> None:
    """The same phases under another name, another way to spread memory, config files for dry runs."""
    same_recipe(trained, recipe(trained.parent, *changes), NOT_THE_STUDENTS)


def test_an_evaluation_may_ask_another_corpus_and_no_other_student(trained: Path) -> None:
    same_recipe(trained, recipe(trained.parent, "data.corpora.0.train_split=other", "teachers.kd.max_new_tokens=9"), NOT_THE_STUDENTS)
    with pytest.raises(InputError, match="`optim.lr`"):
        same_recipe(trained, recipe(trained.parent, "optim.lr=0.5"), NOT_THE_STUDENTS)


@pytest.mark.parametrize("verb", [["export", NAME, "--out", "nowhere"], ["eval", NAME]])
def test_the_verbs_refuse_it_in_one_line(
    verb: list[str], trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["speechkd", *verb, "--set", f"runs={trained.parent}", "--set", "train.regime=mix"])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    message = capsys.readouterr().err.strip()
    assert leaving.value.code == 2 and message.count("\n") == 0 and '`train.regime` is `"mix"`, there `"kd"`' in message, message


def test_a_training_that_has_not_ended_is_not_concluded(trained: Path) -> None:
    with pytest.raises(InputError, match="is at step 0 of 1700: train it to its end"):
        conclude(recipe(trained.parent))


def test_a_template_that_changed_since_training_is_not_exported(tmp_path: Path) -> None:
    template = tmp_path / "prompt.j2"
    template.write_text(Path(recipe(tmp_path).prompt.template).read_text(encoding="utf-8"), encoding="utf-8")
    first = recipe(tmp_path, f"prompt.template={template}")
    trained_with = {"prompt": sha256_bytes(_prompt(first.prompt, first.student.llm, {}, tmp_path).encode())}
    assert _prompt(first.prompt, first.student.llm, trained_with, tmp_path) == _prompt(first.prompt, first.student.llm, {}, tmp_path)
    template.write_text("{{ question }} please " + template.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InputError, match="prompt.j2` has changed since"):
        _prompt(first.prompt, first.student.llm, trained_with, tmp_path)


def committed(checkpoints: Path, step: int) -> Path:
    """A checkpoint whose digests are in order; nobody looks inside here."""
    folder = checkpoints / f"step-{step:06d}"
    folder.mkdir(parents=True)
    for file in FILES:
        (folder / file).write_text(f'{{"step": {step}, "adam_step": {step}, "plan": "plan"}}')
    write_json(folder / COMMIT, {"format": FORMAT, "files": {file: sha256_file(folder / file) for file in FILES}})
    return folder


def test_a_run_that_lost_its_checkpoints_continues_from_the_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the whole folder is gone; where it has a valid one of its own, that counts, however old."""
    made = recipe(tmp_path / "runs", f"train.copy_to={tmp_path / 'second'}")
    second = second_place(made, made.run_dir, Retention())
    assert second is not None and isinstance(second.place, Path)
    committed(second.place, 20)
    assert prepare_run(made.run_dir, made, "plan", "require") == made.run_dir / CHECKPOINTS / "step-000020"
    assert latest(made.run_dir / CHECKPOINTS) == made.run_dir / CHECKPOINTS / "step-000020"
    assert "step-000020 was fetched from" in capsys.readouterr().err
    committed(second.place, 30)
    prepare_run(made.run_dir, made, "plan", "auto")
    assert not (made.run_dir / CHECKPOINTS / "step-000030").exists()
    (made.run_dir / CHECKPOINTS / "step-000020" / COMMIT).unlink()
    prepare_run(made.run_dir, made, "plan", "auto")
    assert latest(made.run_dir / CHECKPOINTS) == made.run_dir / CHECKPOINTS / "step-000030"


def test_a_second_place_that_nothing_opens_is_one_line(tmp_path: Path) -> None:
    made = recipe(tmp_path, "train.copy_to=s4://bucket/copies")
    with pytest.raises(InputError, match="`s4://` is not known"):
        prepare_run(made.run_dir, made, "plan", "auto")
