"""A training run whose ranks are killed again and again: `python -m tests.e2e.kill_ranks RECIPE OUT --kills N --seed S`.

Prints what it found. The ranks are forked, so that a start costs the run's own loading and kills fall on the work. A kill is at a random
moment, or while a checkpoint is being written; of the other ranks, some live on for a moment, as under torchrun. Now and then the newest
checkpoint is damaged before the next start.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

from speechkd.engine.checkpoint import COMMIT, FILES, newest_first, step_of, why_invalid
from speechkd.recipe import Recipe, load_recipe
from speechkd.stages import worker
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.inputs.sources import make_schedule, open_train_sources
from speechkd.stages.run_folder import CHECKPOINTS, prepare_run
from speechkd.tracking.journal import JOURNAL, metric_series
from tests.forked import end_all, get_ready, start, wait_until

WORLDS = (2, 1, 4, 1, 2, 1, 2, 1)
"""Ranks of one start after another: four of them take long on two cores"""
DAMAGES = ("cut", "flip", "remove")
DAMAGE_EVERY = 4
LONGEST_START_S, LONGEST_RUN_S = 90.0, 240.0


def valid(folder: Path, damaged: str) -> list[Path]:
    """Committed checkpoints, newest first; each must be valid, whatever was killed, but the one that was `damaged`."""
    committed = [step for step in newest_first(folder / CHECKPOINTS) if (step / COMMIT).is_file()]
    broken = {step: why for step in committed if (why := why_invalid(step))}
    torn = [f"{step.name}: {why}" for step, why in broken.items() if step.name != damaged]
    assert not torn, f"committed and not valid: {torn}"
    return [step for step in committed if step not in broken]


def damage(checkpoint: Path, how: str, choice: random.Random) -> None:
    """Damage one file of a checkpoint."""
    file = choice.choice(FILES)
    data = bytearray((checkpoint / file).read_bytes())
    if how == "flip":
        data[choice.randrange(len(data))] ^= 1
    (checkpoint / file).write_bytes(data[:-1] if how == "cut" else data)
    if how == "remove":
        (checkpoint / file).unlink()


def _work(folder: Path) -> None:
    sys.argv = ["worker", str(folder)]
    worker.main()


class Campaign:
    """Kills until there are enough, over as many runs as that takes."""

    def __init__(self, recipe: Path, out: Path, seed: int) -> None:
        self.path, self.out, self.choice = recipe, out, random.Random(seed)
        self.found = {"kills": 0, "in_a_save": 0, "damaged": 0, "runs": 0, "starts": 0}
        self.worlds: dict[int, int] = dict.fromkeys(WORLDS, 0)

    def recipe(self, name: str) -> Recipe:
        return load_recipe(self.path, [f"name={name}", f"runs={self.out}"])

    def prepare(self, recipe: Recipe) -> None:
        schedule = make_schedule(recipe, open_train_sources(recipe, open_prompt(recipe.prompt, recipe.student.llm)))
        prepare_run(recipe.run_dir, recipe, schedule.digest, "auto")

    def whole(self) -> Path:
        """The uninterrupted run."""
        recipe = self.recipe("whole")
        self.prepare(recipe)
        pids = start(partial(_work, recipe.run_dir), 2, self.out / "whole.log")
        wait_until(lambda: False, pids, LONGEST_RUN_S)
        assert end_all(pids) == [0, 0], (self.out / "whole.log").read_text()[-2000:]
        return recipe.run_dir

    def run(self, kills: int) -> None:
        """One run, killed until it is finished or there are enough kills, then let go to its end."""
        self.found["runs"] += 1
        recipe = self.recipe(f"run{self.found['runs']}")
        folder, log, newest, damaged = recipe.run_dir, self.out / "killed.log", 0, ""
        while True:
            self.prepare(recipe)
            log.unlink(missing_ok=True)
            world = WORLDS[self.found["starts"] % len(WORLDS)]
            self.worlds[world] += 1
            self.found["starts"] += 1
            began = time.monotonic()
            pids = start(partial(_work, folder), world, log)
            killed = self.found["kills"] < kills and self.kill(folder, pids)
            if not killed:
                wait_until(lambda: False, pids, LONGEST_RUN_S)
            codes, said = end_all(pids), log.read_text()
            print(f"start {self.found['starts']}: {world} ranks, killed {killed}, {time.monotonic() - began:.1f} s", file=sys.stderr)
            if damaged:
                assert f"checkpoint {damaged} is ignored" in said, f"{damaged} was damaged, and this was said: {said[-2000:]}"
            self.found["kills"] += killed
            steps = valid(folder, damaged)
            damaged = damaged if damaged not in [step.name for step in steps] and (folder / CHECKPOINTS / damaged).is_dir() else ""
            assert not newest or (steps and step_of(steps[0]) >= newest), "a checkpoint was lost"
            newest = step_of(steps[0]) if steps else 0
            if not killed:
                assert codes == [0] * world, said[-3000:]
                return
            if len(steps) > 1 and not damaged and self.found["kills"] % DAMAGE_EVERY == 0:
                damage(steps[0], self.choice.choice(DAMAGES), self.choice)  # it stays so until its step is saved again
                damaged, newest, self.found["damaged"] = steps[0].name, step_of(steps[1]), self.found["damaged"] + 1

    def kill(self, folder: Path, pids: list[int]) -> bool:
        """Kill a random rank at a random moment of its work; False if the run was finished before."""
        journal, before = folder / JOURNAL, _size(folder / JOURNAL)
        if not wait_until(lambda: _size(journal) > before, pids, LONGEST_START_S):
            return False
        if self.choice.random() < 0.5:
            saving = wait_until(lambda: any((folder / CHECKPOINTS).glob(".step-*.tmp")), pids, LONGEST_RUN_S)
            if not saving:
                return False
            time.sleep(self.choice.uniform(0, 0.02))
        else:
            time.sleep(self.choice.uniform(0, 1.5))
        victim = self.choice.choice(pids)
        if os.waitid(os.P_PID, victim, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        os.kill(victim, signal.SIGKILL)
        self.found["in_a_save"] += any((folder / CHECKPOINTS).glob(".step-*.tmp"))
        time.sleep(self.choice.choice([0.0, 0.05, 0.3]))
        return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def compare(whole: Path, killed: Path) -> float:
    """Largest relative difference of the two loss curves; every step must be there once, with the very same examples."""
    ours, theirs = (metric_series(run / JOURNAL) for run in (killed, whole))
    assert dict(ours["train/padding_ratio"]) == dict(theirs["train/padding_ratio"]), "other examples were seen"
    first, second = dict(theirs["train/loss"]), dict(ours["train/loss"])
    assert sorted(first) == sorted(second)
    return max(abs(second[step] / first[step] - 1) for step in first)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    get_ready()
    campaign = Campaign(given.recipe, given.out, given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    whole, worst = campaign.whole(), 0.0
    while campaign.found["kills"] < given.kills:
        campaign.run(given.kills)
        worst = max(worst, compare(whole, given.out / f"run{campaign.found['runs']}"))
    print(json.dumps(campaign.found | {"worst": worst, "worlds": campaign.worlds}))


if __name__ == "__main__":
    main()
