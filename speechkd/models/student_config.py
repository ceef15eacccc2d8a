"""Configuration of a student: the frozen models that it stands on, and the parts that train. Recipes and exports hold this block."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import SerializeAsAny, field_validator, model_validator

from speechkd.core.config import Config
from speechkd.core.table import part_of
from speechkd.models.attention import Attention
from speechkd.models.encoder import EncoderStates
from speechkd.models.encoder_families import EncoderWindow
from speechkd.models.lora import LoraConfig
from speechkd.models.projectors import PROJECTORS, ProjectorConfig
from speechkd.models.recompute import Recompute

ProjectorBlock = Annotated[SerializeAsAny[ProjectorConfig], part_of(PROJECTORS, "kind")]
"""A block that its `kind` makes the Config of one projector"""


class StudentConfig(Config):
    """Encoder and LLM are folders or hub ids; both are frozen, but for LoRA."""

    RENAMED = {"mix": "`encoder_states` (`all` is `weighted_sum`, `last` stays)", "start": "`init_from`"}
    encoder: str
    llm: str
    lora: LoraConfig | None = None
    init_from: str | None = None
    """an export from which the layer weights, the projector and LoRA (the same `lora` here) start; its language model is named by `llm`"""
    projector: ProjectorBlock
    encoder_states: EncoderStates = "weighted_sum"
    """`weighted_sum`: a learned weighted sum of all encoder layers; `last`: the encoder's last state, nothing to learn"""
    encoder_window: EncoderWindow = "full"
    """`full`: clips are padded to the encoder's window (30 s), as it was trained; `true`: to the longest clip of a batch, which for short
    clips costs a fraction; `clip` (Whisper): the clip alone is heard, no silence behind it, as in Ultravox. A student answers with the
    window that it was trained with"""
    normalise_layers: bool = False
    """bring encoder layers to one scale before they are summed"""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    attention: Attention = "auto"
    """of the language model; `auto`: the best that its architecture and the device allow"""
    recompute: Recompute = "off"
    """what of the language model's blocks is computed again for the backward pass instead of kept in memory"""
    config_root: str | None = None
    """folder of config files (`<hub id>/config.json`), for dry runs where the hub cannot be reached"""

    @property
    def hears_from_the_start(self) -> bool:
        """Whether projector and language model were trained together before the first step."""
        whole_speech_llm = self.projector.kind == "linear" and self.projector.starts_from() == self.llm
        return bool(self.init_from) or whole_speech_llm

    @field_validator("encoder_window", mode="before")
    @classmethod
    def _window_in_yaml(cls, value: Any) -> Any:
        return "true" if value is True else value  # YAML reads the word as a truth value

    @model_validator(mode="after")
    def _scaled_only_if_summed(self) -> StudentConfig:
        if self.encoder_states == "last" and self.normalise_layers:
            raise ValueError("`encoder_states: last` sums no layers, so `normalise_layers` does nothing: set it to false")
        return self
