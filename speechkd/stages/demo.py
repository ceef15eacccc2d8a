"""`speechkd demo`: runs the demo recipe from corpus to answers and prints a table of results."""

from __future__ import annotations

from pathlib import Path

import speechkd
from speechkd.core.errors import InputError
from speechkd.core.files import read_json
from speechkd.recipe import load_recipe
from speechkd.stages.evaluate import SUMMARY
from speechkd.stages.run import EXPORT, REPORT, run

RECIPE = Path("pipelines/meta_prompt_kd.yaml")
SCORES = Path("standins/scores.json")
"""How well the stand-in models did when they were made"""


def demo(out: Path, ranks: int, sets: list[str]) -> int:
    """Run the embedded recipe into `out`, with shards and MLflow store inside it, and print the results."""
    if not RECIPE.is_file():
        home = Path(speechkd.__file__).parents[1]
        raise InputError(f"the demo runs in the project's own folder (there is no `{RECIPE}` here); try: cd {home}")
    if out.name in ("", ".", ".."):
        raise InputError(f"--out `{out}` must name a folder")
    overrides = [f"name={out.name}", f"runs={out.parent}", f"data.root={out / 'data'}", f"tracking.uri=sqlite:///{out / 'mlflow.db'}"]
    code = run(load_recipe(RECIPE, [*overrides, *sets]), ranks)
    if code == 0:
        _show(out)
    return code


def _show(out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    summary = read_json(out / SUMMARY)
    columns = ("student", "unseen", "teacher", "untrained", "shuffled", "chance")
    table = Table(title="answers from audio alone, strict scoring, % (digits: 100 - word error rate)", title_justify="left")
    table.add_column("task")
    for name in (*columns, "n", "unparsable"):
        table.add_column(name, justify="right")
    for task, row in summary["tasks"].items():
        cells = ["–" if row.get(name) is None else f"{100 * row[name]:.1f}" for name in columns]
        table.add_row(task, *cells, str(row["n"]), str(row["unparsable"]))
    console = Console(width=max(100, Console().width))  # a log file has no width, and cut headings help nobody
    console.print(table)
    ctc = read_json(SCORES)["encoder"]["ctc_word_accuracy"]
    console.print(
        "digits are 100 - word error rate, below 0 where too much is said; word accuracy of the encoder's own CTC head, on all digit "
        "clips of the same splits: " + ", ".join(f"{100 * row['digits']['accuracy']:.1f} ({split})" for split, row in ctc.items()),
        soft_wrap=True,
    )
    took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in summary["seconds"].items())
    console.print(f"stages: {took}", soft_wrap=True)
    console.print(f"report:  {out / REPORT}", soft_wrap=True)
    console.print(f"mlflow:  .venv/bin/mlflow ui --backend-store-uri sqlite:///{out / 'mlflow.db'}", soft_wrap=True)
    console.print(f'ask:     .venv/bin/speechkd ask {out / EXPORT} clip.wav "What language is spoken?"', soft_wrap=True)
