"""A paper's effect in miniature: each variant of a recipe with several seeds, and the mean with its interval.

    python pipelines/miniatures/run.py wong26a --ranks 2

Reads `pipelines/miniatures/PAPER.yaml`, runs every variant and seed by `speechkd run` (a finished one is skipped, a killed one goes on),
and writes `pipelines/miniatures/PAPER.md`. Seeds are those of the file, all of them are in the table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from scipy.stats import t as student_t

from speechkd.core.config import Config, build, read_yaml
from speechkd.core.log import say

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SPLITS = ("student", "unseen")


class Miniature(Config):
    """One paper's comparison."""

    claim: str
    """what the paper found, in a sentence that the table can contradict"""
    recipe: str
    seeds: list[int]
    set: list[str]
    """for all variants"""
    variants: dict[str, list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paper", choices=sorted(path.stem for path in HERE.glob("*.yaml")))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "miniatures")
    args = parser.parse_args()
    path = HERE / f"{args.paper}.yaml"
    mini = build(Miniature, read_yaml(path), str(path))
    scores: dict[str, list[dict[str, float]]] = {}
    for variant, sets in mini.variants.items():
        for seed in mini.seeds:
            say(f"── {variant}, seed {seed}")
            scores.setdefault(variant, []).append(one(mini, args.runs / args.paper, f"{variant}-{seed}", seed, sets, args.ranks))
    text = table(args.paper, mini, scores)
    (HERE / f"{args.paper}.md").write_text(text, encoding="utf-8")
    print(text)


def one(mini: Miniature, runs: Path, name: str, seed: int, sets: list[str], ranks: int) -> dict[str, float]:
    """Scores of one run, in %: `<task>` of known voices, `<task>, unseen`, and their means over tasks."""
    changes = [*mini.set, *sets, f"seed={seed}", f"name={name}", f"runs={runs}", f"data.root={runs / 'data'}", "tracking.uri="]
    command = [sys.executable, "-m", "speechkd", "run", mini.recipe, "--ranks", str(ranks)]
    for change in changes:
        command += ["--set", change]
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        sys.exit(code)
    tasks = json.loads((runs / name / "summary.json").read_text(encoding="utf-8"))["tasks"]
    found = {}
    for split in SPLITS:
        label = "" if split == "student" else f", {split}"
        values = {task: 100 * row[split] for task, row in tasks.items() if row.get(split) is not None}
        found |= {f"{task}{label}": value for task, value in values.items()}
        if values:
            found[f"mean{label}"] = statistics.fmean(values.values())
    return found


def table(paper: str, mini: Miniature, scores: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: a row per variant, mean ± half the 95 % interval (Student's t) over the seeds."""
    names = list(next(iter(scores.values()))[0])
    seeds = len(mini.seeds)
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    lines = [
        f"# {paper} in miniature",
        "",
        f"Claim: {mini.claim}. {seeds} seeds, mean ± half of the 95 % interval over seeds, % right, greedy, from audio alone.",
        "",
        f"`make miniature PAPER={paper}`, {machine}, {datetime.date.today().isoformat()}",
        "",
        "| variant | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for variant, rows in scores.items():
        cells = [interval([row[name] for row in rows]) for name in names]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def interval(values: list[float]) -> str:
    """mean ± half the 95 % interval"""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.1f} ± {half:.1f}"


if __name__ == "__main__":
    main()
