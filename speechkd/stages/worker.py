"""One rank of a training run: `torchrun ... -m speechkd.stages.worker RUN_DIR`. The recipe is read from the run folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechkd.cluster.local import REQUEUE
from speechkd.core import dist
from speechkd.core.errors import EXIT_FAILED, EXIT_INPUT, DataError, InputError
from speechkd.core.files import exclusive, sha256_bytes, write_json
from speechkd.core.log import progress, say
from speechkd.core.seeds import torch_seed
from speechkd.core.types import Batch
from speechkd.data.plan.plan import ExampleRef
from speechkd.engine.checkpoint import latest, load_moments, load_weights, read_trainer, save
from speechkd.engine.ds_config import Precision, read_ds_config
from speechkd.engine.export import save_probe
from speechkd.engine.wrap import Engine
from speechkd.engine.zero import GROUP_TIMEOUT_S, close_distributed, init_distributed, local_device, partition_report
from speechkd.losses.positions import predicting_positions
from speechkd.models.exported import load_features, make_collator
from speechkd.recipe import Recipe
from speechkd.stages.assembly.base_models import frozen_base, same_base
from speechkd.stages.assembly.method import build_method
from speechkd.stages.assembly.student import build_student
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.inputs.sources import make_loader, make_schedule, open_train_sources
from speechkd.stages.lineage import record_checkpoints
from speechkd.stages.run_folder import CHECKPOINTS, PROBES, run_recipe
from speechkd.tracking.journal import JOURNAL, Journal
from speechkd.train.distiller import Distiller
from speechkd.train.loop import Diverged, Loop, Outcome
from speechkd.train.preempt import PreemptionFlag
from speechkd.train.schedule import Schedule, feed
from speechkd.train.watchdog import Watchdog

LOCK, LOCK_WAIT_S = ".lock", 60.0
PROBE_POSITIONS, PROBES_KEPT = 16, 4


def work(folder: Path) -> None:
    """Train this rank's share of the run in `folder`, from the newest valid checkpoint to the end or to a preemption."""
    preemption = PreemptionFlag()
    recipe = run_recipe(folder)
    init_distributed(max(GROUP_TIMEOUT_S, 2 * recipe.train.stall_s))  # the watchdog fires first: it knows where a rank is stuck
    # Ranks of a killed launcher may still be saving their last step: wait for them, and never write beside another run.
    busy = f"another training run is at work in `{folder}`"
    with exclusive(folder / LOCK, LOCK_WAIT_S, busy) if dist.rank() == 0 else nullcontext():
        _train(folder, recipe, preemption)


def _train(folder: Path, recipe: Recipe, preemption: PreemptionFlag) -> None:
    prompt = open_prompt(recipe.prompt, recipe.student.llm)
    sources = open_train_sources(recipe, prompt)
    schedule = make_schedule(recipe, sources)
    world = dist.world_size()
    dist.barrier()  # rank 0 holds the run folder's lock
    newest = latest(folder / CHECKPOINTS)
    ds_config = read_ds_config(Path(recipe.deepspeed))
    student = build_student(recipe.student, ds_config, recipe.seed)
    with torch_seed(recipe.seed, "losses"):
        distiller = Distiller(student, build_method(recipe, student))
    if newest is not None:
        _same_run(read_trainer(newest), recipe, schedule, newest)
        load_weights(distiller, newest)
    accumulate = recipe.plan.per_rank(world)
    precision: Precision = "bf16" if recipe.student.dtype == "bfloat16" else "fp32"
    engine = Engine(distiller, recipe.optim, ds_config, accumulate, recipe.optim.clip, precision)
    start = 0
    if newest is not None:
        start = load_moments(engine, newest)
        if dist.rank() == 0:
            say(f"train: continues from {newest} on {world} ranks")
    state = {"recipe": recipe.digest(), "plan": schedule.digest, "seed": recipe.seed, "base": frozen_base(recipe.student, recipe.live)}
    state["prompt"] = sha256_bytes(prompt.text.encode())
    collator = make_collator(distiller.student, load_features(recipe.student.encoder))
    load = make_loader(recipe, sources, prompt, collator)

    journal = Journal(folder / JOURNAL) if dist.rank() == 0 else None

    def keep(step: int) -> None:
        _assert_partitioned(engine, ds_config)
        save(engine, folder / CHECKPOINTS, step, state, recipe.train.keep_checkpoints)
        if journal is not None:
            record_checkpoints(journal, folder / CHECKPOINTS)
        _write_probe(folder / PROBES / f"step-{step:06d}.safetensors", engine, load, schedule)

    watchdog = Watchdog(recipe.train.stall_s, dist.rank())
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
        preemption=preemption,
        watchdog=watchdog,
    )
    step_batches = feed(schedule, load, dist.rank(), world, start, recipe.train.prefetch, recipe.train.workers)
    with watchdog:
        watchdog.enter(start, "data")
        outcome = loop.run(progress(step_batches, "train", total=schedule.steps, start=start, quiet=dist.rank() != 0))
    if outcome is Outcome.PREEMPTED and dist.rank() == 0:
        write_json(folder / REQUEUE, {"reason": "preempted", "steps": schedule.steps})
    dist.barrier()


def _same_run(trainer: dict[str, object], recipe: Recipe, schedule: Schedule, checkpoint: Path) -> None:
    """Raises InputError for a checkpoint of another recipe, other data or other frozen models."""
    if trainer.get("recipe") != recipe.digest() or trainer.get("plan") != schedule.digest:
        raise InputError(f"`{checkpoint}` belongs to another recipe or other data than `{recipe.name}` has now")
    same_base(trainer, checkpoint, recipe.student, recipe.live)


def _assert_partitioned(engine: Engine, ds_config: Mapping[str, Any]) -> None:
    """With a persistence threshold of 0, no parameter may be whole on a rank between steps: catches leaks of gathered weights."""
    zero = ds_config["zero_optimization"]
    if zero["stage"] == 3 and zero.get("stage3_param_persistence_threshold") == 0 and dist.world_size() > 1:
        whole = [name for name, available in partition_report(engine.module).items() if available]
        assert not whole, f"whole between steps: {whole[:5]}"


def _write_probe(path: Path, engine: Engine, load: Callable[[Sequence[ExampleRef]], Batch], schedule: Schedule) -> None:
    """Save training's logits at a few positions of the first examples, to compare the export with. Every rank must call it."""
    refs = [ref for micro in schedule.share(0, 0, 1) for ref in micro][:2]
    batch = load(refs)
    batch.response_T, batch.mask_T = batch.response_T[:PROBE_POSITIONS], batch.mask_T[:PROBE_POSITIONS]
    engine.train(False)
    with torch.no_grad():
        logits_TV: Tensor = engine.forward(batch.to(local_device()), True)
    engine.train()
    if dist.rank() == 0:
        try:
            save_probe(path, batch, predicting_positions(batch.response_T), logits_TV)
            for old in sorted(path.parent.glob("step-*.safetensors"))[:-PROBES_KEPT]:
                old.unlink()
        except OSError as error:  # the checkpoint is what counts
            say(f"train: no probe for this checkpoint: {error}")


def main() -> None:
    """Exit 0 done or preempted (`requeue.json` says which), 1 failed, 2 wrong input."""
    try:
        work(Path(sys.argv[1]))
    except InputError as error:
        say(f"error: {error}")
        sys.exit(EXIT_INPUT)
    except (DataError, Diverged) as error:  # damaged bytes, a run that went wrong: it is not our code that anyone must read
        say(f"error on rank {dist.rank()}: {error}")
        sys.exit(EXIT_FAILED)
    except Exception as error:  # noqa: BLE001  (a rank that fails must end, so that torchrun ends the others)
        import traceback

        traceback.print_exc()
        say(f"error on rank {dist.rank()}: {error}")
        sys.exit(EXIT_FAILED)
    close_distributed()


if __name__ == "__main__":
    main()
