"""A paper's effect in miniature: each variant of a recipe with several seeds, and what the paper claims, judged by paired differences.

    python pipelines/miniatures/run.py wong26a --ranks 2
    python pipelines/miniatures/run.py wong26a --jobs 2         two runs side by side, one rank each: less waiting, fewer imports
    python pipelines/miniatures/run.py wong26a --dry-run        load and plan every variant, run nothing

Reads `pipelines/miniatures/PAPER.yaml`, runs what it needs, then every variant and seed by `speechkd run` (a finished one is skipped, a
killed one goes on), and writes `pipelines/miniatures/PAPER.md`. Seeds and expectations are those of the file; all of them are in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from forks import Job, run_jobs
from tables import Judged, Scores, markdown, scores_of

from speechkd.core.config import Config, build, read_yaml
from speechkd.core.errors import InputError, unknown_name
from speechkd.core.log import say
from speechkd.recipe import load_recipe

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NEEDS = "NEEDS/"
"""In a `set`: the folder of the runs that come first"""


class Need(Config):
    """What variants stand on, made once: a run of a recipe (its export at `NEEDS/<name>/export`), or a model that a script builds.

    `merge`: the run's LoRA folded into its language model, at `NEEDS/<name>/merged/llm`. `script`: words after `python`; it is given
    `--out NEEDS/<name>`.
    """

    recipe: str = ""
    set: list[str] = []
    merge: bool = False
    script: list[str] = []


class Miniature(Config):
    """One paper's comparison."""

    claim: str
    """what the paper found, in a sentence that the table can contradict"""
    recipe: str
    seeds: list[int]
    needs: dict[str, Need] = {}
    base: str = ""
    """the need whose export is asked the same questions: the student before the variants trained it"""
    means: dict[str, list[str]] = {}
    """measure -> tasks whose mean it is"""
    set: list[str]
    """for all variants"""
    variants: dict[str, list[str]]
    expect: dict[str, list[tuple[str, str]]]
    """measure -> pairs of variants, the first of which the claim puts above the second; written before the runs were seen"""

    def check(self, where: str) -> None:
        """Raises InputError for a variant or need that is not there."""
        for measure, pairs in self.expect.items():
            for name in (name for pair in pairs for name in pair):
                if name not in self.variants:
                    raise InputError(unknown_name("variant", name, self.variants, f"{where}: expect.{measure}"))
        if self.base and self.base not in self.needs:
            raise InputError(unknown_name("need", self.base, self.needs, f"{where}: base"))
        for name, need in self.needs.items():
            if bool(need.recipe) == bool(need.script):
                raise InputError(f"a need has either `recipe` or `script` ({where}: needs.{name})")


class Bench:
    """Where the runs of one paper lie, and the commands that make them."""

    def __init__(self, mini: Miniature, folder: Path, paper: str, ranks: int, jobs: int) -> None:
        self.mini, self.runs, self.needs, self.data = mini, folder / paper, folder / "needs", folder / "data"
        self.ranks, self.jobs = ranks, jobs

    def sets(self, changes: list[str], name: str, runs: Path) -> list[str]:
        """Overrides of one run, with the needs' folder in them."""
        own = [f"name={name}", f"runs={runs}", f"data.root={self.data}", "tracking.uri="]
        return [change.replace(NEEDS, f"{self.needs}/") for change in changes] + own

    def variant(self, name: str, seed: int) -> list[str]:
        """Overrides of one variant with one seed."""
        return self.sets([*self.mini.set, *self.mini.variants[name], f"seed={seed}"], f"{name}-{seed}", self.runs)

    def make_need(self, name: str) -> None:
        """The run or model of this name, once."""
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
        """Scores of the student before."""
        say(f"── base {self.mini.base}")
        exported = self.needs / self.mini.base / "export"
        plain = self.sets([*self.mini.set, *next(iter(self.mini.variants.values()))], "base", self.runs)
        self._speechkd("eval", self.mini.recipe, plain, "--checkpoint", str(exported))
        return self._read(self.runs / "base" / "eval" / exported.name / "summary.json")

    def make(self, variant: str, seed: int) -> Scores:
        """Scores of one run."""
        say(f"── {variant}, seed {seed}")
        began = time.monotonic()
        self._speechkd("run", self.mini.recipe, self.variant(variant, seed), "--ranks", str(self.ranks))
        say(f"── {variant}, seed {seed}: {time.monotonic() - began:.0f} s")
        return self._read(self.runs / f"{variant}-{seed}" / "summary.json")

    def make_all(self) -> dict[str, list[Scores]]:
        """Every variant and seed, one after the other, or `jobs` side by side as forks of this process."""
        todo = [(variant, seed) for seed in self.mini.seeds for variant in self.mini.variants]
        if self.jobs:
            for corpus in load_recipe(ROOT / self.mini.recipe, self.variant(*todo[0])).data.corpora:  # columns are shared safely
                self._call(["-m", "speechkd", "shard", corpus.card, "--out", str(self.data)])
            run_jobs([self._job(*pair) for pair in todo], self.jobs)
        done = {pair: self._read(self.runs / f"{pair[0]}-{pair[1]}" / "summary.json") if self.jobs else self.make(*pair) for pair in todo}
        return {variant: [done[variant, seed] for seed in self.mini.seeds] for variant in self.mini.variants}

    def _job(self, variant: str, seed: int) -> Job:
        name = f"{variant}-{seed}"
        return Job(name, ROOT / self.mini.recipe, self.variant(variant, seed), self.runs / f"{name}.log")

    def _speechkd(self, verb: str, recipe: str, sets: list[str], *words: str) -> None:
        self._call(["-m", "speechkd", verb, recipe, *words, *(word for change in sets for word in ("--set", change))])

    def _call(self, words: list[str]) -> None:
        code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
        if code:
            raise SystemExit(code)

    def _read(self, summary: Path) -> Scores:
        return scores_of(json.loads(summary.read_text(encoding="utf-8"))["tasks"], self.mini.means)


def load(paper: str) -> Miniature:
    """The miniature of a paper. Raises InputError."""
    path = HERE / f"{paper}.yaml"
    mini = build(Miniature, read_yaml(path), str(path))
    mini.check(str(path))
    return mini


def plan(bench: Bench) -> None:
    """Load every need and variant, and plan those whose needs are there. Runs nothing."""
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
    """Paths below the needs' folder that overrides name."""
    return [part.split(NEEDS, 1)[1].strip("\"'}] ") for text in sets for part in text.split(",") if NEEDS in part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paper", choices=sorted(path.stem for path in HERE.glob("*.yaml")))
    parser.add_argument("--ranks", type=int, default=2, help="processes a run")
    parser.add_argument("--jobs", type=int, default=0, help="runs side by side, each on one rank and one thread; 0: one after the other")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "miniatures")
    parser.add_argument("--dry-run", action="store_true", help="load and plan every variant, run nothing")
    args = parser.parse_args()
    os.chdir(ROOT)  # paths in recipes are relative to it
    bench = Bench(load(args.paper), args.runs.resolve(), args.paper, 1 if args.jobs else args.ranks, args.jobs)
    if args.dry_run:
        plan(bench)
        return
    for name in bench.mini.needs:
        bench.make_need(name)
    scores = bench.make_all()
    base = bench.make_base() if bench.mini.base else None
    text = markdown(args.paper, Judged(bench.mini.claim, bench.mini.seeds, bench.mini.expect, scores, base))
    (HERE / f"{args.paper}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
