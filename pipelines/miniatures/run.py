"""Reproduces a paper's effect in miniature: runs each variant of a recipe with several seeds and tests the claim by paired differences.

    python pipelines/miniatures/run.py wong26a --ranks 2
    python pipelines/miniatures/run.py wong26a --jobs 2         two runs side by side, one rank each: less waiting, fewer imports
    python pipelines/miniatures/run.py wong26a --dry-run        load and plan every variant, run nothing
    python pipelines/miniatures/run.py wong26a --jobs 2 --pilot a seed outside all tables, to set a miniature up: prints, writes nothing

Reads `pipelines/miniatures/PAPER.yaml`, makes its needs, then runs every variant and seed by `speechkd run` (finished runs are skipped,
killed ones continue), and writes `pipelines/miniatures/PAPER.md`. Every seed and expectation of the file is in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from forks import Job, run_jobs
from tables import Judged, Scores, markdown, scores_of

from speechkd.core.config import Config, build, read_yaml
from speechkd.core.errors import InputError, unknown_name
from speechkd.core.log import say
from speechkd.recipe import load_recipe

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PILOT_SEED = 9
"""Seed for setting a miniature up; never in a table"""
NEEDS = "NEEDS/"
"""Placeholder in `set` values for the folder of the needs"""


class Need(Config):
    """A prerequisite of the variants, made once: a run of a recipe (export in `NEEDS/<name>/export`), or a model that a script builds.

    `merge`: also merge the run's LoRA into its language model, in `NEEDS/<name>/merged/llm`. `script`: arguments of `python`;
    `--out NEEDS/<name>` is added.
    """

    recipe: str = ""
    set: list[str] = []
    merge: bool = False
    script: list[str] = []


class Miniature(Config):
    """One paper's comparison."""

    claim: str
    """the paper's finding, in a sentence that the table can contradict"""
    recipe: str
    seeds: list[int]
    needs: dict[str, Need] = {}
    base: str = ""
    """the need whose export is evaluated too: the student before the variants trained it"""
    means: dict[str, list[str]] = {}
    """measure -> tasks that it averages"""
    set: list[str]
    """overrides for all variants"""
    variants: dict[str, list[str]]
    expect: dict[str, list[tuple[str, str]]]
    """measure -> pairs (better, worse) of variants according to the claim; written before the runs of this table were seen"""

    def pilot(self, chosen: list[str]) -> Miniature:
        """The chosen variants (all if none is named) with the pilot seed. Raises InputError for an unknown variant."""
        for name in chosen:
            if name not in self.variants:
                raise InputError(unknown_name("variant", name, self.variants, "--pilot"))
        variants = {name: sets for name, sets in self.variants.items() if name in chosen or not chosen}
        expect = {measure: [pair for pair in pairs if set(pair) <= set(variants)] for measure, pairs in self.expect.items()}
        return self.model_copy(update={"seeds": [PILOT_SEED], "variants": variants, "expect": expect})

    def check(self, where: str) -> None:
        """Raises InputError for unknown variants or needs, and for the pilot seed."""
        for measure, pairs in self.expect.items():
            for name in (name for pair in pairs for name in pair):
                if name not in self.variants:
                    raise InputError(unknown_name("variant", name, self.variants, f"{where}: expect.{measure}"))
        if PILOT_SEED in self.seeds:
            raise InputError(f"seed {PILOT_SEED} is that of pilots, and what a miniature is set up with is not its result ({where}: seeds)")
        if self.base and self.base not in self.needs:
            raise InputError(unknown_name("need", self.base, self.needs, f"{where}: base"))
        for name, need in self.needs.items():
            if bool(need.recipe) == bool(need.script):
                raise InputError(f"a need has either `recipe` or `script` ({where}: needs.{name})")


class Bench:
    """The folders of one paper's runs, and the commands that make them."""

    def __init__(self, mini: Miniature, folder: Path, paper: str, ranks: int, jobs: int) -> None:
        self.mini, self.runs, self.needs, self.data = mini, folder / paper, folder / "needs", folder / "data"
        self.ranks, self.jobs = ranks, jobs

    def sets(self, changes: list[str], name: str, runs: Path) -> list[str]:
        """Overrides of one run, with NEEDS/ replaced by its folder."""
        standard = [f"name={name}", f"runs={runs}", f"data.root={self.data}", "tracking.uri="]
        return [change.replace(NEEDS, f"{self.needs}/") for change in changes] + standard

    def variant(self, name: str, seed: int) -> list[str]:
        """Overrides of one variant with one seed."""
        return self.sets([*self.mini.set, *self.mini.variants[name], f"seed={seed}"], f"{name}-{seed}", self.runs)

    def make_need(self, name: str) -> None:
        """Make the need of this name, unless it exists."""
        need, folder = self.mini.needs[name], self.needs / name
        say(f"── needs {name}")
        if need.script:
            if not (folder.with_suffix(".json")).is_file():
                self._call([*need.script, "--out", str(folder), "--scores", str(folder.with_suffix(".json"))])
            return
        sets = self.sets(need.set, name, self.needs)
        self._speechkd("run", need.recipe, sets, "--ranks", str(self.ranks))
        if need.merge:
            self._speechkd("export", need.recipe, sets, "--out", str(folder / "merged"), "--merge")

    def make_base(self) -> Scores:
        """Evaluate the base student; returns its scores."""
        say(f"── base {self.mini.base}")
        exported = self.needs / self.mini.base / "export"
        plain = self.sets([*self.mini.set, *list(self.mini.variants.values())[-1]], "base", self.runs)
        self._speechkd("eval", self.mini.recipe, plain, "--checkpoint", str(exported))
        tasks = _tasks(self.runs / "base" / "eval" / exported.name / "summary.json")
        return scores_of(tasks, self.mini.means)

    def make(self, variant: str, seed: int) -> None:
        """Run one variant with one seed."""
        say(f"── {variant}, seed {seed}")
        began = time.monotonic()
        self._speechkd("run", self.mini.recipe, self.variant(variant, seed), "--ranks", str(self.ranks))
        say(f"── {variant}, seed {seed}: {time.monotonic() - began:.0f} s")

    def make_all(self) -> dict[str, list[Scores]]:
        """Run every variant and seed, in sequence or `jobs` at a time as forks of this process; returns scores by variant."""
        todo = [(variant, seed) for seed in self.mini.seeds for variant in self.mini.variants]
        if self.jobs:
            recipes = [load_recipe(ROOT / self.mini.recipe, self.variant(name, self.mini.seeds[0])) for name in self.mini.variants]
            for card in sorted({corpus.card for recipe in recipes for corpus in recipe.data.corpora}):  # columns are shared safely
                self._call(["-m", "speechkd", "shard", card, "--out", str(self.data)])
            run_jobs([self._job(*pair) for pair in todo], self.jobs)
        else:
            for pair in todo:
                self.make(*pair)
        done = {(variant, seed): _tasks(self.runs / f"{variant}-{seed}" / "summary.json") for variant, seed in todo}
        tasks = sorted({task for results in done.values() for task in results})
        return {v: [scores_of(done[v, seed], self.mini.means, tasks) for seed in self.mini.seeds] for v in self.mini.variants}

    def _job(self, variant: str, seed: int) -> Job:
        name = f"{variant}-{seed}"
        return Job(name, ROOT / self.mini.recipe, self.variant(variant, seed), self.runs / f"{name}.log")

    def _speechkd(self, verb: str, recipe: str, sets: list[str], *words: str) -> None:
        self._call(["-m", "speechkd", verb, recipe, *words, *(word for change in sets for word in ("--set", change))])

    def _call(self, words: list[str]) -> None:
        code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
        if code:
            raise SystemExit(code)


def _tasks(summary: Path) -> dict[str, Any]:
    """The results by task in a summary."""
    tasks: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))["tasks"]
    return tasks


def load(paper: str) -> Miniature:
    """Read a paper's miniature. Raises InputError."""
    path = HERE / f"{paper}.yaml"
    mini = build(Miniature, read_yaml(path), str(path))
    mini.check(str(path))
    return mini


def plan(bench: Bench) -> None:
    """Load every need and variant, and plan those whose needs exist. Runs nothing."""
    from speechkd.stages.plan import plan as dry

    mini = bench.mini
    todo = {f"needs {name}": (need.recipe, bench.sets(need.set, name, bench.needs), need.set) for name, need in mini.needs.items()}
    todo |= {name: (mini.recipe, bench.variant(name, mini.seeds[0]), [*mini.set, *mini.variants[name]]) for name in mini.variants}
    for name, (recipe, sets, raw) in todo.items():
        if recipe:
            loaded = load_recipe(ROOT / recipe, sets)
            say(f"── {name}")
            missing = [path for path in _needed(raw) if not (bench.needs / path).exists()]
            if missing:
                say(f"   loads; planned once `needs/{missing[0]}` is there")
            else:
                dry(loaded, bench.ranks)


def _needed(sets: list[str]) -> list[str]:
    """Paths below NEEDS/ in the overrides."""
    return [part.split(NEEDS, 1)[1].strip("\"'}] ") for text in sets for part in text.split(",") if NEEDS in part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paper", choices=sorted(path.stem for path in HERE.glob("*.yaml")))
    parser.add_argument("--ranks", type=int, default=2, help="processes a run")
    parser.add_argument("--jobs", type=int, default=0, help="runs side by side, each on one rank and one thread; 0: one after the other")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "miniatures")
    parser.add_argument("--dry-run", action="store_true", help="load and plan every variant, run nothing")
    parser.add_argument(
        "--pilot", nargs="*", metavar="VARIANT", help=f"these variants (all) with seed {PILOT_SEED}; prints, writes no table"
    )
    args = parser.parse_args()
    os.chdir(ROOT)  # paths in recipes are relative to it
    mini, piloting = load(args.paper), args.pilot is not None
    if piloting:
        mini = mini.pilot(args.pilot)
    paper = f"pilot-{args.paper}" if piloting else args.paper
    bench = Bench(mini, args.runs.resolve(), paper, 1 if args.jobs else args.ranks, args.jobs)
    if args.dry_run:
        plan(bench)
        return
    for name in bench.mini.needs:
        bench.make_need(name)
    scores = bench.make_all()
    base = bench.make_base() if bench.mini.base else None
    text = markdown(args.paper, Judged(bench.mini.claim, bench.mini.seeds, bench.mini.expect, scores, base))
    if not piloting:
        (HERE / f"{args.paper}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
