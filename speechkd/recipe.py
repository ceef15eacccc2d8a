"""One typed recipe, made of the configurations that stand beside their owners.

Relative paths in a recipe are relative to the folder where speechkd runs (the project root); model names are folders or hub ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, StringConstraints, ValidationError, model_validator

from speechkd.core.config import NAME_PATTERN, Config, apply_sets, build, read_extending
from speechkd.core.errors import unknown_name
from speechkd.core.files import digest
from speechkd.core.table import part_of
from speechkd.data.columns.signals import SignalsConfig
from speechkd.data.plan.plan import PlanConfig
from speechkd.evaluation.questions import EvaluationConfig
from speechkd.losses import LOSSES, LossConfig
from speechkd.models.projectors import PROJECTORS
from speechkd.models.student_config import StudentConfig
from speechkd.teachers import TEACHERS
from speechkd.teachers.base import TeacherConfig, column_signals, quoted
from speechkd.teachers.gates import GateConfig
from speechkd.teachers.live_config import LiveConfig, check_live
from speechkd.teachers.prompts import PromptConfig
from speechkd.teachers.student_llm import StudentLlmConfig
from speechkd.tracking import TrackingConfig
from speechkd.train.config import TrainConfig
from speechkd.train.optim import OptimConfig

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


def _named(value: Any) -> Any:
    """Blocks of losses with their `kind`, which is the block's name where it does not say."""
    if not isinstance(value, dict) or not value:
        raise ValueError(f"must name at least one loss; allowed: {', '.join(sorted(LOSSES))}")
    plain = {name: {} if block is None else block for name, block in value.items()}
    return {name: {**block, "kind": str(block.get("kind") or name)} if isinstance(block, dict) else block for name, block in plain.items()}


Losses = Annotated[dict[str, Annotated[SerializeAsAny[LossConfig], part_of(LOSSES, "kind")]], BeforeValidator(_named)]


class _AllLosses(Config):
    """The block `losses` alone, every loss in it."""

    losses: Losses


class CorpusConfig(Config):
    """One corpus: its card, the split or splits to train on, and how much it weighs."""

    RENAMED = {"mix": "`weights`"}
    card: str
    train_split: str | Annotated[list[str], Field(min_length=1)] = "train"
    weights: dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    """by teacher role, times the phase's passes; 1 for a role that is not named, and a role at 0 does not read this corpus"""

    @property
    def train_splits(self) -> list[str]:
        """The splits to train on."""
        return [self.train_split] if isinstance(self.train_split, str) else self.train_split

    def weight(self, role: str) -> float:
        """Of a role's examples of this corpus."""
        return self.weights.get(role, 1.0)


class DataConfig(Config):
    """Where shards live, and which corpora a recipe uses."""

    root: str
    corpora: list[CorpusConfig] = Field(min_length=1)


class Recipe(Config):
    """A published method as data: what to teach, what to train, how to judge."""

    name: Name
    paper: str = ""
    description: str = ""
    seed: int = 0
    runs: str = "runs"
    data: DataConfig
    prompt: PromptConfig
    gates: GateConfig = GateConfig()
    """which of the teachers' answers are trained on"""
    teachers: dict[Name, Annotated[SerializeAsAny[TeacherConfig], part_of(TEACHERS, "backend")]]
    live: dict[Name, LiveConfig] = {}
    """teachers that run inside the training step; losses name them"""
    objective: str = ""
    objectives: dict[str, list[str]] = {}
    """named choices among `losses`, as a paper's ablation has them; `objective` picks one (`--set objective=top`), empty: all losses"""
    student: StudentConfig
    losses: Losses
    plan: PlanConfig
    optim: OptimConfig
    train: TrainConfig
    deepspeed: str = "ds_configs/zero3.json"
    evaluation: EvaluationConfig
    tracking: TrackingConfig

    @model_validator(mode="before")
    @classmethod
    def _chosen_objective(cls, data: Any) -> Any:
        """Keep the losses of the objective, and the live teachers that they name: what is not asked for is not built."""
        if not isinstance(data, dict) or not data.get("objective"):
            return data
        name, choices, losses = data["objective"], data.get("objectives") or {}, data.get("losses")
        if not isinstance(choices, dict) or not isinstance(losses, dict):
            return data
        if name not in choices:
            raise ValueError(unknown_name("objective", str(name), choices))
        _check_objectives(choices, losses)
        blocks = _AllLosses(losses=losses).losses  # a misspelt one is not just left out
        kept = {loss: block for loss, block in losses.items() if loss in choices[name]}
        named = {teacher for loss in kept for teacher in blocks[loss].live_teachers().values()}
        live = {teacher: block for teacher, block in (data.get("live") or {}).items() if teacher in named}
        return {**data, "losses": kept, "live": live, "objectives": {name: choices[name]}}

    @model_validator(mode="before")
    @classmethod
    def _fill_student_llm(cls, data: Any) -> Any:
        """Say in blocks of backend `self` which model that is."""
        teachers, student = (data.get(name) for name in ("teachers", "student")) if isinstance(data, dict) else (None, None)
        if not isinstance(teachers, dict) or not isinstance(student, dict):
            return data
        follows = {"model": student.get("llm"), "dtype": student.get("dtype", StudentConfig.model_fields["dtype"].default)}
        filled = {r: {**follows, **b} for r, b in teachers.items() if isinstance(b, dict) and b.get("backend") == "self"}
        return {**data, "teachers": {**teachers, **filled}}

    @model_validator(mode="after")
    def _student_llm_is_the_students(self) -> Recipe:
        for role, config in self.teachers.items():
            if isinstance(config, StudentLlmConfig) and config.model != self.student.llm:
                raise ValueError(
                    f"teacher `{role}` (self) is the student's own LLM `{self.student.llm}`, not `{config.model}`: leave `model` out, "
                    "or use `hf_local`"
                )
        return self

    @model_validator(mode="after")
    def _teachers_supply_what_losses_need(self) -> Recipe:
        for name, config in self.losses.items():
            for stream in config.streams:
                if stream not in self.train.all_streams:
                    raise ValueError(unknown_name("stream", stream, self.train.all_streams, f"losses.{name}.streams"))
            check_live(name, config, self.live)
        for teacher, live in self.live.items():
            if live.kind == "snapshot" and not self.student.hears_from_the_start:
                raise ValueError(
                    f"live teacher `{teacher}` (snapshot) would be a student that has learned nothing yet: set `student.init_from` to an "
                    "export, or `student.projector.init_from` of a `linear` projector to the student's own speech LLM"
                )
        for name, config in self.losses.items():
            kind = self.student.projector.kind
            if "gate" in config.needs().student and not _gated(kind):
                others = ", ".join(other for other in PROJECTORS if _gated(other)) or "none"
                raise ValueError(f"loss `{name}` needs a projector with a language gate, `{kind}` has none; those that have: {others}")
        for role in self.train.roles:
            if role not in self.teachers:
                raise ValueError(unknown_name("teacher role", role, self.teachers, f"train.regimes.{self.train.regime}"))
            self._column_supplies(role)
        return self

    @model_validator(mode="after")
    def _regimes_and_objectives_name_what_is_there(self) -> Recipe:
        """Also of those that are not chosen: who chooses one later should not find its slip then."""
        for regime, phases in self.train.regimes.items():
            for role in {stream.partition("/")[0]: None for phase in phases for stream in phase.mix}:
                if role not in self.teachers:
                    raise ValueError(unknown_name("teacher role", role, self.teachers, f"train.regimes.{regime}"))
        if not self.objective:
            _check_objectives(self.objectives, self.losses)
        return self

    @model_validator(mode="after")
    def _corpora_weigh_known_roles(self) -> Recipe:
        for corpus in self.data.corpora:
            for role in corpus.weights:
                if role not in self.teachers:
                    raise ValueError(unknown_name("teacher role", role, self.teachers, f"data.corpora, weights of {corpus.card}"))
        for role in self.train.roles:
            if all(not corpus.weight(role) for corpus in self.data.corpora):
                raise ValueError(f"teacher role `{role}` of regime `{self.train.regime}` has weight 0 in every corpus")
        return self

    def _column_supplies(self, role: str) -> None:
        backend = self.teachers[role].backend
        can = TEACHERS.get(backend).SIGNALS
        given = column_signals(self.teachers[role], backend, can)
        for name, config in self.losses.items():
            needs = self.stored_signals(config, role)
            missing = needs - given
            if missing:
                others = sorted(n for n in LOSSES if _fed_by(n, given))
                declare = f"; it can store {quoted(missing & can)}: set `teachers.{role}.signals`" if missing & can else ""
                raise ValueError(
                    f"loss `{name}` needs {quoted(missing)}, but teacher `{role}` ({backend}) gives {quoted(given)}{declare}; "
                    f"losses that it can feed: {', '.join(others)}; or name a live teacher (`losses.{name}.teacher`)"
                )
            _same_temperature(role, self.teachers[role].signals_config(), name, config, needs)
            _same_k(role, self.teachers[role].signals_config(), name, config, needs)
        # Kilobytes a token: nobody should find out after the teacher's pass that nothing reads them.
        if "hidden" in given and not any("hidden" in self.stored_signals(config, role) for config in self.losses.values()):
            raise ValueError(
                f"no loss of this recipe reads stored `hidden`: leave `teachers.{role}.signals.hidden` out, "
                "or give it a loss on layers without a live teacher (`layer_wise`, `representation: hidden`, `linear` or `cka`)"
            )

    def stored_signals(self, config: LossConfig, role: str) -> frozenset[str]:
        """What a loss needs of a role's column: nothing if it counts none of its examples."""
        return config.needs().stored if config.counts_role(role) else frozenset()

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(self.runs) / self.name

    def trained_by(self) -> dict[str, Any]:
        """What changes the trained student: not names and places, how often it is logged and saved, or how it is judged."""
        data = self.model_dump(mode="json", include={"seed", "data", "prompt", "student", "live", "losses", "plan", "optim", "deepspeed"})
        data["data"].pop("root")
        if self.gates.active:
            data["gates"] = self.gates.model_dump(mode="json")
        data["prompt"] = self.prompt.identity()
        data["phases"] = [phase.model_dump(mode="json") for phase in self.train.phases]
        if self.train.spike is not None:
            data["spike"] = self.train.spike.model_dump(mode="json")
        data["teachers"] = {role: self.teachers[role].identity() for role in self.train.roles}
        return data

    def digest(self) -> str:
        """Digest of what changes the trained student."""
        return digest(self.trained_by())


def _check_objectives(objectives: Mapping[str, Any], losses: Mapping[str, Any]) -> None:
    for name, named in objectives.items():
        for loss in named if isinstance(named, list) else ():
            if not isinstance(loss, str) or loss not in losses:
                raise ValueError(unknown_name("loss", str(loss), losses, f"objectives.{name}"))


def _fed_by(loss: str, given: frozenset[str]) -> bool:
    """Whether a loss with its default settings needs nothing that a column with the signals `given` lacks."""
    try:
        config = LOSSES.get(loss).Config()
    except ValidationError:  # it has a key without a default
        return False
    return not config.needs().stored - given and config.positions() != "audio"


def _gated(projector: str) -> bool:
    return PROJECTORS.get(projector).Config.GATED


def _same_temperature(role: str, stored: SignalsConfig, loss: str, config: LossConfig, needs: frozenset[str]) -> None:
    """Stored log-probs are at the capture temperature already; the student's must be at the same one."""
    wanted = config.needs().temperature
    for signal, captured in stored.temperatures().items():
        if signal in needs and wanted is not None and captured != wanted:
            raise ValueError(
                f"loss `{loss}` has temperature {wanted:g}, but teacher `{role}` stores `{signal}` at {captured:g}: "
                f"set `losses.{loss}.temperature` or `teachers.{role}.signals.{signal}.temperature`"
            )


def _same_k(role: str, stored: SignalsConfig, loss: str, config: LossConfig, needs: frozenset[str]) -> None:
    """How many ids are stored is the column's to say."""
    wanted = config.needs().k
    if "topk" in needs and stored.topk is not None and wanted is not None and wanted != stored.topk.k:
        raise ValueError(
            f"loss `{loss}` has k {wanted}, but teacher `{role}` stores {stored.topk.k} ids: "
            f"leave `losses.{loss}.k` out, or set `teachers.{role}.signals.topk.k`"
        )


def recipe_data(path: Path, sets: tuple[str, ...] | list[str] = ()) -> dict[str, Any]:
    """The recipe's data: the file over what it `extends` (one file, beside it), then `--set` over both."""
    return apply_sets(read_extending(path), sets)


def load_recipe(path: Path, sets: tuple[str, ...] | list[str] = ()) -> Recipe:
    """Read and validate a recipe. Raises InputError (one line) for anything wrong in it."""
    return build(Recipe, recipe_data(path, sets), str(path))
