"""One rank of a training run: `torchrun ... -m speechkd.stages.worker RUN_DIR [CHECKED]`. The recipe is read from the run folder."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from speechkd.cluster.local import REQUEUE
from speechkd.core import dist
from speechkd.core.errors import EXIT_FAILED, EXIT_INPUT, DataError, InputError
from speechkd.core.failures import rank_here, record_failure
from speechkd.core.files import read_json, sha256_bytes, write_json
from speechkd.core.locks import exclusive
from speechkd.core.log import progress, say
from speechkd.core.seeds import torch_seed
from speechkd.core.types import Batch
from speechkd.data.plan.plan import ExampleRef
from speechkd.engine.checkpoint import latest, load_moments, load_weights, read_trainer
from speechkd.engine.checkpoint_saver import Retention, Saver
from speechkd.engine.ds_config import AUTO, Precision, read_ds_config, with_linear
from speechkd.engine.export import save_probe
from speechkd.engine.wrap import Engine
from speechkd.engine.zero import GROUP_TIMEOUT_S, close_distributed, init_distributed, local_device, partition_report
from speechkd.losses.positions import predicting_positions
from speechkd.models.exported import load_features, make_collator
from speechkd.recipe import Recipe
from speechkd.stages.assembly.base_models import frozen_base, same_base
from speechkd.stages.assembly.flops import model_flops
from speechkd.stages.assembly.memory_file import auto_file, fitted
from speechkd.stages.assembly.method import build_method
from speechkd.stages.assembly.student import build_student, set_attention
from speechkd.stages.grown_data import of_this_run
from speechkd.stages.inputs.held_out import open_held_out
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.inputs.sources import make_loader, make_schedule, open_train_sources
from speechkd.stages.lineage import record_checkpoints
from speechkd.stages.run_folder import CHECKPOINTS, PROBES, RUN, read_history, run_recipe, second_place, write_history
from speechkd.tracking.journal import JOURNAL, Journal
from speechkd.train.distiller import Distiller
from speechkd.train.held_out import HeldOut
from speechkd.train.history import History
from speechkd.train.loop import Diverged, Loop, Outcome
from speechkd.train.preempt import PreemptionFlag
from speechkd.train.profiler import StepProfiler
from speechkd.train.schedule import Schedule, feed
from speechkd.train.spikes import SpikeGuard
from speechkd.train.watchdog import STACKS, Watchdog

LOCK, LOCK_WAIT_S = ".lock", 60.0
PROBE_POSITIONS, PROBES_KEPT = 16, 4


def work(folder: Path, checked: str | None = None) -> None:
    """Train this rank's share of the run in `folder`, from the newest valid checkpoint to the end or to a preemption.

    `checked`: the seal of a checkpoint whose files the launcher has read.
    """
    preemption = PreemptionFlag(tells=os.environ.get("LOCAL_RANK", "0") == "0")  # one of each node: a signal may reach one node only
    recipe = run_recipe(folder)
    init_distributed(max(GROUP_TIMEOUT_S, 2 * recipe.train.stall_s))  # the watchdog fires first: it knows where a rank is stuck
    # Ranks of a killed launcher may still be saving their last step: wait for them, and never write beside another run.
    busy = f"another training run is at work in `{folder}`"
    with exclusive(folder / LOCK, LOCK_WAIT_S, busy) if dist.rank() == 0 else nullcontext():
        _train(folder, recipe, preemption, checked)


def _train(folder: Path, recipe: Recipe, preemption: PreemptionFlag, checked: str | None) -> None:
    prompt = open_prompt(recipe.prompt, recipe.student.llm)
    sources = open_train_sources(recipe, prompt)
    data = read_json(folder / RUN)
    schedule = make_schedule(recipe, sources, data.get("grown_at", 0))
    world = dist.world_size()
    dist.barrier()  # rank 0 holds the run folder's lock
    newest = latest(folder / CHECKPOINTS, checked)
    memory_file, ds_config = _memory(recipe, world)
    student = build_student(recipe.student, ds_config, recipe.seed)
    attention = set_attention(student.llm, recipe.student, local_device())
    with torch_seed(recipe.seed, "losses"):
        distiller = Distiller(student, build_method(recipe.model_copy(update={"deepspeed": memory_file}), student))
    if newest is not None:
        _same_run(read_trainer(newest), recipe, data | {"plan": schedule.digest}, newest)
        load_weights(distiller, newest)
    accumulate = recipe.plan.per_rank(world)
    precision: Precision = "bf16" if recipe.student.dtype == "bfloat16" else "fp32"
    engine = Engine(distiller, recipe.optim, ds_config, accumulate, recipe.optim.clip, precision, distiller.blocks())
    start = 0
    journal = Journal(folder / JOURNAL) if dist.rank() == 0 else None
    if journal is not None:
        say(f"train: attention `{attention.name}`: {attention.why}")
        journal.tags({"attention": attention.name, "recompute": recipe.student.recompute, "deepspeed": memory_file})
    if journal is not None and schedule.grown_at:
        journal.tags({"data_grown_at": str(schedule.grown_at)})
    if newest is not None:
        start = load_moments(engine, newest)
        if dist.rank() == 0:
            say(f"train: continues from {newest} on {world} ranks")
    state = {"recipe": recipe.digest(), "plan": schedule.digest, "seed": recipe.seed, "base": frozen_base(recipe.student, recipe.live)}
    state["prompt"] = sha256_bytes(prompt.text.encode())
    collator = make_collator(distiller.student, load_features(recipe.student.encoder))
    load = make_loader(recipe, sources, prompt, collator)

    retention = Retention(keep=recipe.train.keep_checkpoints, every=recipe.train.keep_every)
    second = second_place(recipe, folder, retention)
    if second is not None and newest is not None and dist.rank() == 0:
        second.offer(newest)  # whoever was killed may have left it uncopied
    saver = Saver(engine, folder / CHECKPOINTS, retention, second)
    spikes = SpikeGuard(recipe.train.spike) if recipe.train.spike is not None else None
    _restore_counters(newest, engine, spikes)

    def keep(step: int) -> None:
        _assert_partitioned(engine, ds_config)
        probe = _make_probe(folder / PROBES / f"step-{step:06d}.safetensors", engine, load, schedule)
        counters = {"skipped": engine.skipped, "spikes": spikes.state() if spikes is not None else None}
        saver.begin(step, {**state, "counters": counters}, probe)
        if journal is not None:
            record_checkpoints(journal, folder / CHECKPOINTS)  # up to the save before: this one is being written

    held_out = None
    if recipe.train.held_out is not None:
        earlier = dist.from_rank_zero(read_history(folder, start).values if dist.rank() == 0 else None)
        groups, load_held_out = open_held_out(recipe, recipe.train.held_out, prompt, collator)
        held_out = HeldOut(
            engine=engine,
            distiller=distiller,
            config=recipe.train.held_out,
            groups=groups,
            load=load_held_out,
            seed=recipe.seed,
            history=History([(step, loss) for step, loss in earlier]),
            record=partial(write_history, folder),
        )
        if held_out.history.best is not None:
            saver.keep(held_out.history.best[0])
    watchdog = Watchdog(recipe.train.stall_s, dist.rank(), folder / STACKS, world)

    def last_step() -> int | None:
        """The step that training would stop after: a signal counts from the next time that the ranks add up their flags."""
        if (place := watchdog.place) is None:
            return None
        return min(schedule.steps, place[0] + (1 if place[1] == "data" else 2))

    preemption.last_step = last_step
    loop = Loop(
        engine=engine,
        distiller=distiller,
        config=recipe.train,
        optim=recipe.optim,
        seed=recipe.seed,
        steps=schedule.steps,
        device=local_device(),
        journal=journal,
        save=keep,
        saver=saver,
        preemption=preemption,
        watchdog=watchdog,
        spikes=spikes,
        profiler=StepProfiler(recipe.train.profile, folder) if dist.rank() == 0 else None,
        held_out=held_out,
        flops=model_flops(recipe) if local_device().type == "cuda" or recipe.train.peak_tflops else None,
    )
    most_bytes = int(recipe.train.prefetch_gib * 2**30)
    step_batches = feed(schedule, load, dist.rank(), world, start, recipe.train.prefetch, recipe.train.workers, most_bytes)
    with watchdog:
        watchdog.enter(start, "data")
        try:
            outcome = loop.run(progress(step_batches, "train", total=schedule.steps, start=start, quiet=dist.rank() != 0))
        finally:
            saver.wait()  # on an error too: what was begun is a good checkpoint
        if second is not None and outcome is Outcome.FINISHED:  # a preemption has no time for it; the next start copies
            watchdog.enter(schedule.steps, "copy")
            second.wait(recipe.train.stall_s / 2)
    if outcome is Outcome.PREEMPTED and dist.rank() == 0:
        write_json(folder / REQUEUE, {"reason": "preempted", "steps": schedule.steps})
    dist.barrier()


def _memory(recipe: Recipe, world: int) -> tuple[str, dict[str, Any]]:
    """The DeepSpeed file that the recipe names, or under `auto` the one that fits these ranks, and its configuration."""
    file, per_node = recipe.deepspeed, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if file == AUTO:
        device = local_device()
        here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / per_node
        memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else here
        file, why = dist.from_rank_zero(auto_file(recipe, float(memory), world, per_node))
        if dist.rank() == 0:
            say(f"train: {file}: {why}")
    ds_config = read_ds_config(Path(file))
    if recipe.deepspeed == AUTO:
        ds_config = fitted(ds_config, per_node)
    return file, with_linear(ds_config, recipe.student.recompute != "off")


def _same_run(trainer: dict[str, Any], recipe: Recipe, data: Mapping[str, Any], checkpoint: Path) -> None:
    """Raises InputError for a checkpoint of another recipe, other data or other frozen models."""
    if trainer.get("recipe") != recipe.digest() or not of_this_run(trainer, data):
        raise InputError(f"`{checkpoint}` belongs to another recipe or other data than `{recipe.name}` has now")
    same_base(trainer, checkpoint, recipe.student, recipe.live)


def _assert_partitioned(engine: Engine, ds_config: Mapping[str, Any]) -> None:
    """With a persistence threshold of 0, no parameter may be whole on a rank between steps: catches leaks of gathered weights."""
    zero = ds_config["zero_optimization"]
    if zero["stage"] == 3 and zero.get("stage3_param_persistence_threshold") == 0 and dist.world_size() > 1:
        whole = [name for name, available in partition_report(engine.module).items() if available]
        assert not whole, f"whole between steps: {whole[:5]}"


def _make_probe(path: Path, engine: Engine, load: Callable[[Sequence[ExampleRef]], Batch], schedule: Schedule) -> Callable[[], None] | None:
    """Compute training's logits at a few positions of the first examples, to compare the export with. Every rank must call it.

    Returns what writes them, on rank 0.
    """
    refs = [ref for micro in schedule.share(schedule.grown_at, 0, 1) for ref in micro][:2]
    batch = load(refs)
    batch.response_T, batch.mask_T = batch.response_T[:PROBE_POSITIONS], batch.mask_T[:PROBE_POSITIONS]
    engine.train(False)
    with torch.no_grad():
        logits_TV: Tensor = engine.forward(batch.to(local_device()), True)
    engine.train()
    if dist.rank() != 0:
        return None

    def write() -> None:
        try:
            save_probe(path, batch, predicting_positions(batch.response_T), logits_TV)
            for old in sorted(path.parent.glob("step-*.safetensors"))[:-PROBES_KEPT]:
                old.unlink()
        except OSError as error:  # the checkpoint is what counts
            say(f"train: no probe for this checkpoint: {error}")

    return write


def _restore_counters(checkpoint: Path | None, engine: Engine, spikes: SpikeGuard | None) -> None:
    """Go on counting skipped steps, and looking back on the steps before, where the checkpoint was."""
    counters = read_trainer(checkpoint).get("counters") if checkpoint is not None else None
    if not isinstance(counters, dict):
        return
    engine.skipped = int(counters["skipped"])
    if spikes is not None and counters["spikes"] is not None:
        spikes.restore(counters["spikes"])


def main() -> None:
    """Exit 0 done or preempted (`requeue.json` says which), 1 failed, 2 wrong input.

    A rank leaves its error in the run folder; the launcher prints the first one of all ranks, as its last line.
    """
    folder = Path(sys.argv[1])
    try:
        work(folder, *sys.argv[2:3])
    except InputError as error:
        _leave(folder, str(error), EXIT_INPUT)
    except (DataError, Diverged) as error:  # damaged bytes, a run that went wrong: it is not our code that anyone must read
        _leave(folder, str(error), EXIT_FAILED)
    except Exception as error:  # noqa: BLE001  (a rank that fails must end, so that torchrun ends the others)
        _leave(folder, f"{type(error).__name__}: {error}", EXIT_FAILED, error)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Python drops handlers while it shuts down, and the default one kills
    close_distributed()


def _leave(folder: Path, reason: str, code: int, error: Exception | None = None) -> NoReturn:
    """End this rank. Its error goes to the screen only where the launcher cannot find it."""
    if not (folder.is_dir() and record_failure(folder, rank_here(), reason, error)):
        if error is not None:
            traceback.print_exception(error)
        say(f"error on rank {rank_here()}: {reason}")
    sys.exit(code)


if __name__ == "__main__":
    main()
