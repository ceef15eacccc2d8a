"""The command line: one function per verb, no logic. Exit codes: 0 done, 1 failed, 2 wrong input, 75 stopped cleanly and resumable."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from speechkd.core.errors import EXIT_FAILED, EXIT_INPUT, DataError, InputError

EXIT_INTERRUPTED = 130
"""Typer's exit code for Ctrl-C"""
_USAGE: Any = typer.BadParameter.__mro__[1]
"""Typer's UsageError, which it does not export (Typer bundles its own click)"""
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
"""Errors of a path that the user gave wrongly, as opposed to a failing disk"""

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Distil large teachers into speech LLMs."
)

RecipePath = Annotated[Path, typer.Argument(help="a recipe, e.g. pipelines/meta_prompt_kd.yaml")]
Sets = Annotated[Optional[list[str]], typer.Option("--set", help="override one key: a.b=value (repeatable)")]
Partition = Annotated[str, typer.Option(help="I/N: do part I (from 0) of N, for job arrays")]
Ranks = Annotated[int, typer.Option(help="processes on this machine")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object instead of text")]
RunFolder = Annotated[Path, typer.Argument(help="a run folder")]
Cluster = Annotated[Optional[str], typer.Option(help="a site profile: a name in launch/clusters, or a .yaml file")]
Resume = Annotated[Literal["auto", "require", "never"], typer.Option(help="auto: continue if there is a checkpoint")]


@app.command()
def doctor(
    run_folder: Annotated[Optional[Path], typer.Option(help="the shared folder, or a run; unset: the profile's, or this one")] = None,
    cluster: Cluster = None,
    recipe: Annotated[Optional[Path], typer.Option(help="says where MLflow and the shards are")] = None,
    mlflow: Annotated[Optional[str], typer.Option(help="MLflow's address; unset: the recipe's, or MLFLOW_TRACKING_URI")] = None,
    store: Annotated[Optional[str], typer.Option(help="an object store's URL; unset: the recipe's `data.root`")] = None,
    json: AsJson = False,
) -> None:
    """What this machine, or the allocation that runs it, has; what is missing or unsafe, and the way out."""
    from speechkd.recipe import load_recipe
    from speechkd.stages.doctor.examine import doctor as stage

    loaded = load_recipe(recipe) if recipe is not None else None
    raise typer.Exit(stage(run_folder, cluster, loaded, mlflow, store, json))


@app.command()
def demo(out: Annotated[Path, typer.Option(help="run folder")] = Path("runs/demo"), ranks: Ranks = 2, set: Sets = None) -> None:
    """The whole pipeline on embedded defaults: corpus, teacher, training, evaluation, export, report."""
    from speechkd.stages.demo import demo as stage

    raise typer.Exit(stage(out, ranks, set or []))


@app.command()
def check(path: Annotated[str, typer.Argument(help="a card, a recipe, or a folder or URL of shards")]) -> None:
    """Validate a card or recipe; verify every digest of published shards."""
    from speechkd.stages.check import check as stage

    raise typer.Exit(stage(path))


@app.command()
def shard(
    card: Annotated[Path, typer.Argument(help="a corpus card, e.g. shards/cards/minibabel.yaml")],
    out: Annotated[str, typer.Option(help="root of all shards: a folder, or a URL such as s3://bucket/data")],
    partition: Partition = "0/1",
    repair: Annotated[bool, typer.Option("--repair", help="read every byte, and make again what is damaged")] = False,
) -> None:
    """Audio and metadata of a corpus into base shards."""
    from speechkd.stages.shard import shard as stage

    print(stage(card, out, _partition(partition), repair=repair))


@app.command()
def teach(
    recipe: RecipePath,
    set: Sets = None,
    partition: Partition = "0/1",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="ask again for answers that failed or were cut")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="read every byte of the columns, and make again what is damaged")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check names, print what would be asked, ask nothing")] = False,
    json: AsJson = False,
) -> None:
    """Teacher columns for the shards that a recipe names."""
    from speechkd.recipe import load_recipe
    from speechkd.stages.teach import teach as stage

    if json and not dry_run:
        raise InputError("--json needs --dry-run")
    loaded = load_recipe(recipe, set or [])
    if dry_run:
        if retry_failed or repair:
            raise InputError(
                "--dry-run takes neither --retry-failed nor --repair: it counts the failed answers, and `speechkd check` reads bytes"
            )
        from speechkd.stages.teach_plan import plan_teaching

        raise typer.Exit(plan_teaching(loaded, _partition(partition), json))
    for column in stage(loaded, _partition(partition), retry_failed=retry_failed, repair=repair):
        if column is not None:
            print(column.root)


@app.command()
def train(
    recipe: RecipePath,
    set: Sets = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, build on the meta device, print the plan; exit code 1: data is not ready")
    ] = False,
    ranks: Ranks = 1,
    resume: Resume = "auto",
    nodes: Annotated[int, typer.Option(help="nodes; the command runs on each of them, with --ranks processes", min=1)] = 1,
    node_rank: Annotated[int, typer.Option(help="which of the nodes this is, from 0")] = 0,
    rendezvous: Annotated[Optional[str], typer.Option(help="HOST:PORT of node 0, where the nodes meet")] = None,
) -> None:
    """Train the student's projector on shards and columns, under DeepSpeed ZeRO-3."""
    from speechkd.recipe import load_recipe

    if nodes > 1 and not dry_run:
        os.environ.setdefault(
            "TORCH_CPP_LOG_LEVEL", "ERROR"
        )  # read when torch is loaded: a lost connection is one line of ours, not a trace
        from speechkd.cluster.nodes import Place
        from speechkd.stages.train_nodes import train_on_nodes

        place = Place.parse(nodes, node_rank, rendezvous)
        raise typer.Exit(train_on_nodes(lambda: load_recipe(recipe, set or []), [str(recipe), *(set or [])], place, ranks, resume))
    loaded = load_recipe(recipe, set or [])
    if dry_run:
        from speechkd.stages.plan import plan as dry

        raise typer.Exit(dry(loaded, nodes * ranks, to_train=True, resume=resume))
    from speechkd.stages.train import train as stage

    raise typer.Exit(stage(loaded, ranks, resume))


@app.command()
def eval(
    recipe: RecipePath,
    set: Sets = None,
    checkpoint: Annotated[Optional[Path], typer.Option(help="an export folder or a checkpoint; unset: the run's export")] = None,
    regrade: Annotated[bool, typer.Option("--regrade", help="grade stored answers again without asking")] = False,
    whole: Annotated[bool, typer.Option("--whole", help="the trained run's export, evaluation and report, as `speechkd run` ends")] = False,
    partition: Partition = "0/1",
    against: Annotated[Optional[Path], typer.Option(help="another run or its eval folder: compare on the same questions")] = None,
) -> None:
    """Grade a student on the card's tasks, beside its controls."""
    from speechkd.recipe import load_recipe

    if whole:
        if checkpoint is not None or regrade or against is not None or partition != "0/1":
            raise InputError("`--whole` takes no other option: it exports and grades the run's newest checkpoint")
        from speechkd.stages.run import conclude

        raise typer.Exit(conclude(load_recipe(recipe, set or [])))
    from speechkd.stages.evaluate import evaluate_run as stage

    loaded = load_recipe(recipe, set or [])
    graded = stage(loaded, checkpoint, regrade, _partition(partition))
    if against is not None:
        from speechkd.stages.comparing import compare

        compare(loaded, graded, against)


@app.command()
def export(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="folder to write")],
    set: Sets = None,
    merge: Annotated[bool, typer.Option("--merge", help="fold LoRA into the base")] = False,
    format: Annotated[str, typer.Option(help="speechkd, or another engine's folder: qwen2_audio, ultravox")] = "speechkd",
) -> None:
    """The newest checkpoint of a recipe's run as a folder that `speechkd ask` and `load_student` read, or that another engine loads."""
    from speechkd.recipe import load_recipe
    from speechkd.stages.export import export_run as stage

    stage(load_recipe(recipe, set or []), out, merge, format)


@app.command()
def ask(
    export: Annotated[Path, typer.Argument(help="an export folder")],
    audio: Annotated[Path, typer.Argument(help="a WAV, FLAC, Ogg or MP3 file of any rate")],
    question: Annotated[str, typer.Argument(help="what to ask about it")],
) -> None:
    """One answer from a distilled student."""
    from speechkd.stages.ask import ask as stage

    print(stage(export, audio, question))


@app.command()
def serve(
    export: Annotated[Path, typer.Argument(help="an export folder")],
    host: Annotated[str, typer.Option(help="address to listen at")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen at", min=0, max=65535)] = 8000,
    name: Annotated[Optional[str], typer.Option(help="the model's name for clients; unset: the folder's")] = None,
    batch: Annotated[int, typer.Option(help="most questions answered together", min=1)] = 16,
    waiting: Annotated[int, typer.Option(help="most questions that wait; further ones get 429", min=1)] = 256,
    max_mb: Annotated[int, typer.Option(help="largest request", min=1)] = 25,
    max_tokens: Annotated[int, typer.Option(help="longest answer", min=1)] = 1024,
    transcribe: Annotated[Optional[str], typer.Option(help="the question behind /v1/audio/transcriptions")] = None,
    key_env: Annotated[Optional[str], typer.Option(help="variable with the key that clients must send")] = None,
) -> None:
    """Answer over HTTP as OpenAI's chat endpoint does: sound and a question in, text out."""
    from speechkd.serving.app import Serving
    from speechkd.stages.serve import serve as stage

    serving = Serving(name or export.resolve().name, batch, waiting, max_bytes=max_mb << 20, max_tokens=max_tokens, transcribe=transcribe)
    stage(export, host, port, serving, key_env)


@app.command()
def verify(
    url: Annotated[str, typer.Argument(help="the server, e.g. http://localhost:8000/v1")],
    export: Annotated[Path, typer.Option(help="the export folder that it should serve")],
    audio: Annotated[Optional[list[Path]], typer.Option(help="sound files to ask about (repeatable); unset: built-in ones")] = None,
    model: Annotated[Optional[str], typer.Option(help="one of the server's models; unset: its only one")] = None,
    key_env: Annotated[Optional[str], typer.Option(help="variable with the server's key")] = None,
    json: AsJson = False,
) -> None:
    """Whether a server answers as an export does; if not, which known fault explains its answers. Exit code 1: it does not."""
    from speechkd.stages.verify import verify as stage

    raise typer.Exit(stage(url, export, audio or [], model, key_env, json))


@app.command()
def run(recipe: RecipePath, set: Sets = None, ranks: Ranks = 1) -> None:
    """Every stage of a recipe in order; skips what is done and unchanged."""
    from speechkd.recipe import load_recipe
    from speechkd.stages.run import run as stage

    raise typer.Exit(stage(load_recipe(recipe, set or []), ranks))


@app.command()
def submit(
    recipe: RecipePath,
    cluster: Annotated[str, typer.Option(help="a site profile: a name from launch/clusters, or a path that ends in .yaml")],
    set: Sets = None,
    nodes: Annotated[Optional[int], typer.Option(min=1, help="nodes that train; unset: the profile's")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the batch scripts, submit nothing")] = False,
    json: AsJson = False,
) -> None:
    """Every stage as SLURM jobs that wait for one another. What is done is not submitted: the same command again makes up for failures."""
    from speechkd.cluster.profile import read_profile
    from speechkd.recipe import load_recipe
    from speechkd.stages.submit import submit as stage

    raise typer.Exit(stage(load_recipe(recipe, set or []), read_profile(cluster), nodes, dry_run, json))


@app.command()
def status(
    run: RunFolder,
    json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="a table that follows the run until it ends")] = False,
) -> None:
    """Where a run stands: stages, step, last metrics, checkpoints, jobs, how it ended."""
    from speechkd.stages.status import status as stage

    raise typer.Exit(stage(run, json, watch))


@app.command()
def cancel(run: RunFolder) -> None:
    """Cancel the SLURM jobs of a run that wait or run. Training in progress writes a checkpoint first."""
    from speechkd.stages.cancel import cancel as stage

    raise typer.Exit(stage(run))


@app.command()
def report(
    path: Annotated[str, typer.Argument(help="a run folder, or a folder or URL of shards")],
    out: Annotated[Optional[Path], typer.Option(help="the page; unset: report.html in the folder")] = None,
) -> None:
    """One self-contained HTML page of a run, or of published shards: look at them before you train."""
    from speechkd.stages.report import report as stage

    print(stage(path, out))


@app.command()
def plan(
    recipe: RecipePath,
    set: Sets = None,
    ranks: Ranks = 1,
    tokens_per_s: Annotated[float, typer.Option(help="what the teacher reads and writes a second", min=0.001)] = 1000.0,
    cluster: Cluster = None,
    measure: Annotated[bool, typer.Option("--measure", help="with --cluster: run a few of the recipe's steps here first")] = False,
    gpu_memory: Annotated[Optional[float], typer.Option(help="GiB of one GPU, where no --cluster says it: 8 to a node", min=1)] = None,
    json: AsJson = False,
) -> None:
    """What a recipe will cost before anything runs: parameters, memory, teacher tokens, bytes and hours, examples, steps."""
    from speechkd.recipe import load_recipe

    loaded = load_recipe(recipe, set or [])
    if cluster is not None:
        from speechkd.cluster.profile import read_profile
        from speechkd.stages.costs.cluster_plan import plan_on_cluster

        raise typer.Exit(plan_on_cluster(loaded, read_profile(cluster), tokens_per_s, measure, json))
    if gpu_memory is not None:
        from speechkd.cluster.profile import ClusterProfile
        from speechkd.stages.costs.cluster_plan import plan_on_cluster

        here = ClusterProfile(name="gpus", gpus_per_node=min(ranks, 8), gpu_memory_gib=gpu_memory, train={"nodes": -(-ranks // 8)})
        raise typer.Exit(plan_on_cluster(loaded, here, tokens_per_s, measure, json))
    if measure or json:
        raise InputError("--measure and --json need --cluster or --gpu-memory")
    from speechkd.stages.plan import plan as stage

    raise typer.Exit(stage(loaded, ranks, tokens_per_s))


@app.command()
def sync(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    to: Annotated[Optional[Literal["tensorboard", "wandb"]], typer.Option(help="write for another tracker; unset: send to MLflow")] = None,
    out: Annotated[Optional[Path], typer.Option(help="folder for --to; unset: tensorboard or wandb in the run folder")] = None,
) -> None:
    """Send to MLflow what an outage held back, or write the run for TensorBoard or Weights & Biases."""
    from speechkd.stages.sync import sync as stage

    print(stage(run, to, out))


def _partition(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise InputError(f"--partition `{text}` must be I/N with 0 <= I < N, e.g. 0/4")
    return int(part), int(parts)


def main() -> None:
    """Entry point: a user's mistake is one line and exit 2, never a traceback."""
    # Read when torch is first loaded. OpenMP's default spins while it waits; where other processes want the cores too, the same work took
    # 39 to 50 s with it and 5 s without (one shard of the demo's teacher, two threads beside two busy processes, two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code: Any = app(standalone_mode=False)
    except _USAGE as error:
        if message := " ".join(error.format_message().split()):  # empty for a call without a verb, which has already shown the help
            _print_error(f"{message} (see `{error.ctx.command_path} --help`)" if error.ctx else message)
        sys.exit(EXIT_INPUT)
    except InputError as error:
        _print_error(error)
        sys.exit(EXIT_INPUT)
    except OSError as error:  # a full disk, a server that is away
        _print_error(error)
        sys.exit(EXIT_INPUT if error.errno in _NO_PLACE else EXIT_FAILED)
    except DataError as error:
        _print_error(error)
        sys.exit(EXIT_FAILED)
    if code == EXIT_INTERRUPTED:
        print("stopped; the same command continues", file=sys.stderr)
    sys.exit(code or 0)


def _print_error(error: object) -> None:
    from speechkd.core.text import printable

    print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
