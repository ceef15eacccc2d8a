"""How long, in which phases, and how often to save: the recipe's `train` block."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from speechkd.core.config import Config
from speechkd.core.errors import unknown_name
from speechkd.train.profiler import ProfileConfig


class Phase(Config):
    """A stretch of training. `mix` says how many passes over each stream one epoch makes, e.g. {kd: 1, ift: 0.5, kd/text: 0.5}.

    A stream is a teacher's role, whose examples the student hears, or `role/text`: the same examples, read (recipe key `prompt.text`).
    """

    name: str
    steps: int = Field(gt=0)
    mix: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class SpikeConfig(Config):
    """Drop an update whose loss or gradient norm is far above those of the steps before (OLMo-core's skip-step optimizer)."""

    window: int = Field(128, ge=8)
    """steps that are looked back on; nothing is dropped before half of them are there"""
    sigmas: float = Field(6.0, gt=0, allow_inf_nan=False)
    """standard deviations above the mean of the window from which an update is dropped"""


class HeldOutConfig(Config):
    """Measure the loss on a fixed subset of a split that is not trained on."""

    split: str
    """split of the corpora, e.g. `test_known`; a corpus without it is left out"""
    every: int = Field(500, gt=0)
    """steps between two measurements; the last step is measured, too"""
    examples: int = Field(128, gt=0)
    """size of the subset: drawn by a hash, in turn from every task and language"""
    batch_size: int = Field(16, gt=0)
    patience: int | None = Field(None, gt=0)
    """measurements without a new best after which training stops; unset: it goes on to the end"""


class TrainConfig(Config):
    """`regimes` are named lists of phases; `regime` picks one (`--set train.regime=mix`)."""

    regime: str
    regimes: dict[str, list[Phase]]
    log_every: int = Field(10, gt=0)
    checkpoint_every: int = Field(500, gt=0)
    keep_checkpoints: int = Field(2, ge=2)
    """newest checkpoints that stay"""
    keep_every: int | None = Field(None, gt=0)
    """checkpoints of steps that this number divides stay for good"""
    copy_to: str | None = None
    """folder or URL for a second copy of the checkpoints, which a run that lost its own continues from"""
    max_nonfinite: int = Field(10, gt=0)
    """consecutive steps with a non-finite loss or gradient after which the run stops"""
    spike: SpikeConfig | None = None
    """unset: no update is dropped but those that are not finite"""
    held_out: HeldOutConfig | None = None
    """unset: no loss is measured on held-out examples"""
    peak_tflops: float | None = Field(None, gt=0, allow_inf_nan=False)
    """of one GPU in the precision of the run, for `train/mfu`; unset: half precision of the GPUs that are known by name"""
    profile: ProfileConfig | None = None
    """steps of rank 0 to profile, once: a trace and a page in the run folder's `profile`; unset: none"""
    accept_grown_data: bool = False
    """continue a run whose corpora have grown since: a new epoch over the grown data begins at the step that the run is at"""
    stall_s: float = Field(1800, gt=0, le=86_400)
    """seconds that one act of a step (`data`, `all_reduce`, `forward`, ...) may take before its rank is ended, so that the run can go on"""
    prefetch: int = Field(2, ge=1)
    """global steps that are read ahead"""
    prefetch_gib: float = Field(8.0, gt=0, allow_inf_nan=False)
    """host memory of each rank for batches that are read ahead"""
    workers: int = Field(2, ge=0)
    """threads of each rank that read, decode and collate ahead; 0: the training thread itself"""

    @field_validator("profile", mode="before")
    @classmethod
    def _from_is_start(cls, value: Any) -> Any:
        if isinstance(value, dict) and "from" in value and "start" not in value:  # `from` cannot be the name of a field
            return {("start" if key == "from" else key): item for key, item in value.items()}
        return value

    @model_validator(mode="after")
    def _known_regime(self) -> TrainConfig:
        if self.regime not in self.regimes:
            raise ValueError(unknown_name("regime", self.regime, self.regimes))
        if not self.phases:
            raise ValueError(f"regime `{self.regime}` has no phases")
        for stream in self.all_streams:
            if stream.partition("/")[1:] not in (("", ""), ("/", "text")):
                raise ValueError(f"stream `{stream}` must be a role, which is heard, or `role/text`, which is read (train.regimes)")
        return self

    @property
    def phases(self) -> list[Phase]:
        """The phases of the chosen regime."""
        return self.regimes[self.regime]

    @property
    def steps(self) -> int:
        """Global steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def streams(self) -> list[str]:
        """Streams that the chosen regime trains on, in order of first use."""
        return list(dict.fromkeys(stream for phase in self.phases for stream, passes in phase.mix.items() if passes > 0))

    @property
    def roles(self) -> list[str]:
        """Teacher roles of these streams."""
        return list(dict.fromkeys(stream.partition("/")[0] for stream in self.streams))

    @property
    def all_streams(self) -> list[str]:
        """Streams of all regimes: what a loss's `roles` may name."""
        return list(dict.fromkeys(stream for phases in self.regimes.values() for phase in phases for stream in phase.mix))
