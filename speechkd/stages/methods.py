"""Live teachers of a recipe: checked from configurations and tokenizers alone, then built beside the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechkd.core.errors import InputError
from speechkd.core.files import sha256_file
from speechkd.core.seeds import torch_seed
from speechkd.engine.ds_config import read_ds_config, stage
from speechkd.engine.loading import load_causal_lm, load_encoder
from speechkd.engine.zero import local_device
from speechkd.losses import LOSSES, LayerLoss
from speechkd.losses.base import LayerConfig, teacher_of
from speechkd.models.encoder import layer_mix
from speechkd.models.exported import (
    MANIFEST,
    TOKENIZER,
    ExportManifest,
    llm_of,
    load_tokenizer,
    projector_config,
    read_manifest,
    trained_tensors,
)
from speechkd.models.hearing import SPEECH_LLMS
from speechkd.models.pretrained import HUB_ID, config_home, fingerprint, meta_causal_lm, meta_encoder, read_config, resolve
from speechkd.models.projectors import PROJECTORS
from speechkd.models.projectors.linear import LinearConfig, LinearProjector
from speechkd.models.projectors.start import check_start, start
from speechkd.models.prompt import Prompt
from speechkd.models.student import Student
from speechkd.recipe import Recipe
from speechkd.teachers.live import Hearer, build_live
from speechkd.teachers.live_config import SpeechConfig, TextLlmConfig
from speechkd.train.distiller import Method, StoredStates

OWN_PROJECTOR = LinearConfig(pool=1)
"""What stands between the encoder of a speech LLM and its language model"""


def meta_student(recipe: Recipe) -> Student:
    """The recipe's student on the meta device, from configuration files alone (`student.config_root` stands in for a hub out of reach).

    Raises InputError for a LoRA target that matches nothing.
    """
    dtype = getattr(torch, recipe.student.dtype)
    encoder = meta_encoder(config_home(recipe.student.encoder, recipe.student.config_root), dtype)
    llm = meta_causal_lm(config_home(recipe.student.llm, recipe.student.config_root), dtype)
    config = recipe.student
    with torch.device("meta"):
        return Student(encoder, llm, config.projector, config.normalise_layers, config.lora, config.mix)


def check_methods(recipe: Recipe, dry: bool = False) -> list[str]:
    """What of losses, LoRA and live teachers would fail once weights are loaded. Reads configurations and tokenizers only.

    Raises InputError: a LoRA target that matches nothing, a layer out of range, vocabularies that disagree, an unfit speech teacher,
    a model that the projector cannot start from. A `dry` run asks no hub for what `student.config_root` stands in for, and returns what
    could not be checked for want of it, in words.
    """
    notes = []
    if recipe.student.lora is not None:
        meta_student(recipe)
    _check_start(recipe)
    _check_projector_start(recipe)
    for name in recipe.live:
        if dry and (missing := _not_here(recipe, name)) is not None:
            notes.append(f"vocabulary of live teacher `{name}`: the tokenizer of `{missing}` is not on this machine")
        else:
            shared_ids(recipe, name)
        _check_speech(recipe, name)
    for name, config in recipe.losses.items():
        if isinstance(LOSSES.get(config.kind), LayerLoss):
            assert isinstance(config, LayerConfig)
            try:
                if teacher_of(config):
                    config.pairs(_depth(recipe, ""), _depth(recipe, teacher_of(config)))
                else:
                    _stored_states(recipe, name, config)
            except InputError as error:
                raise InputError(f"{error} (losses.{name})") from None
    return notes


def _not_here(recipe: Recipe, teacher: str) -> str | None:
    """Of the models whose vocabularies are compared, the first that has only a configuration file here, and no tokenizer; else None."""
    names = recipe.student.llm, _llm_of(recipe, teacher)
    for name in names if names[0] != names[1] else ():
        if config_home(name, recipe.student.config_root) != name and not _cached(name):
            return name
    return None


def _cached(name: str) -> bool:
    """Whether a hub model's tokenizer is on this machine; the hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def _llm_of(recipe: Recipe, teacher: str) -> str:
    """The language model behind a live teacher, or the student's."""
    config = recipe.live.get(teacher)
    if isinstance(config, TextLlmConfig) or isinstance(config, SpeechConfig) and is_speech_llm(recipe, config):
        return config.model
    if isinstance(config, SpeechConfig):
        return llm_of(Path(config.model), _export(config))
    return recipe.student.llm


def _tokenizer_of(recipe: Recipe, teacher: str) -> Any:
    config = recipe.live.get(teacher)
    exported = isinstance(config, SpeechConfig) and not is_speech_llm(recipe, config)
    return load_tokenizer(str(Path(config.model) / TOKENIZER) if exported else _llm_of(recipe, teacher))  # type: ignore[union-attr]


def is_speech_llm(recipe: Recipe, config: SpeechConfig) -> bool:
    """Whether a speech teacher is a whole speech LLM, not an export."""
    if (Path(config.model) / MANIFEST).is_file():
        return False
    home = Path(config_home(config.model, recipe.student.config_root))
    on_the_hub = not Path(config.model).exists() and HUB_ID.fullmatch(config.model) is not None
    return (home / "config.json").is_file() or on_the_hub


def _depth(recipe: Recipe, teacher: str) -> int:
    config = read_config(resolve(config_home(_llm_of(recipe, teacher), recipe.student.config_root), weights=False))
    depth: int = config.get_text_config().num_hidden_layers
    return depth


def _width(recipe: Recipe, teacher: str) -> int:
    config = read_config(resolve(config_home(_llm_of(recipe, teacher), recipe.student.config_root), weights=False))
    width: int = config.get_text_config().vocab_size
    return width


def other_bases(recipe: Recipe) -> dict[str, str]:
    """Digests of what else a run stands on: models of live teachers, and the export that it starts from."""
    found = {}
    for name, config in recipe.live.items():
        if isinstance(config, TextLlmConfig):
            found[f"live teacher {name}"] = fingerprint(config.model)
        elif isinstance(config, SpeechConfig):
            whole = is_speech_llm(recipe, config)
            found[f"live teacher {name}"] = fingerprint(config.model) if whole else sha256_file(Path(config.model) / MANIFEST)
    if recipe.student.start:
        found["start"] = sha256_file(Path(recipe.student.start) / MANIFEST)
    return found


def _stored_states(recipe: Recipe, loss: str, config: LayerConfig) -> StoredStates:
    """The states that the columns hold for a loss on layers. Raises InputError for a layer that they lack, or that differ by role."""
    found: dict[str, StoredStates] = {}
    for role in recipe.train.roles:
        if "hidden" not in recipe.stored_signals(config, role):
            continue
        teacher, store = recipe.teachers[role], recipe.teachers[role].stores().hidden
        assert store is not None, "a recipe's losses have the signals that they need"
        text = read_config(resolve(str(getattr(teacher, "model")), weights=False)).get_text_config()
        found[role] = StoredStates(layers=store.layers, depth=text.num_hidden_layers, width=teacher.state_width())
    if not found:
        raise InputError(f"loss `{loss}` counts no stream of regime `{recipe.train.regime}` whose column stores states")
    role, states = next(iter(found.items()))
    for other, theirs in found.items():
        if theirs != states:
            raise InputError(f"teachers `{role}` and `{other}` store different states; losses on layers compare with one kind")
    for _, layer in config.pairs(_depth(recipe, ""), states.depth):
        if layer not in states.layers:
            raise InputError(
                f"teacher `{role}` stores layers {', '.join(map(str, states.layers))}, not {layer}: "
                f"set `teachers.{role}.signals.hidden.layers`, or `losses.{loss}.map`"
            )
    return states


def live_parameters(recipe: Recipe) -> dict[str, int]:
    """Parameters of the language models that live teachers bring with them, from configuration files alone."""
    counts = {}
    for name, config in recipe.live.items():
        if isinstance(config, (TextLlmConfig, SpeechConfig)):
            llm = meta_causal_lm(config_home(_llm_of(recipe, name), recipe.student.config_root))
            counts[name] = sum(p.numel() for p in llm.parameters())
    return counts


def _export(config: SpeechConfig) -> ExportManifest:
    return read_manifest(Path(config.model))


def shared_ids(recipe: Recipe, teacher: str) -> Tensor | None:
    """Boolean over ids below both vocabularies' ends: which the student and a live teacher share; None where they are one vocabulary.

    Raises InputError naming the first id on which the tokenizers disagree: their distributions would be compared token by wrong token.
    """
    name = _llm_of(recipe, teacher)
    if name == recipe.student.llm:
        return None
    mine, other = ({number: token for token, number in _tokenizer_of(recipe, t).get_vocab().items()} for t in ("", teacher))
    for number in sorted(mine.keys() & other.keys()):
        if mine[number] != other[number]:
            raise InputError(
                f"vocabularies disagree: id {number} is `{mine[number]}` for the student (`{recipe.student.llm}`), `{other[number]}` for "
                f"`{name}` (live.{teacher}): distil its answers instead, or choose a teacher of the same family"
            )
    widths = _width(recipe, ""), _width(recipe, teacher)
    shared_W = torch.zeros(min(widths), dtype=torch.bool)
    shared_W[[number for number in mine.keys() & other.keys() if number < len(shared_W)]] = True
    return None if widths[0] == widths[1] and bool(shared_W.all()) else shared_W


def _check_speech(recipe: Recipe, teacher: str) -> None:
    config = recipe.live[teacher]
    if not isinstance(config, SpeechConfig):
        return
    if is_speech_llm(recipe, config):
        _check_speech_llm(recipe, teacher, config)
        return
    manifest = _export(config)
    if manifest.lora is not None:
        raise InputError(f"`{config.model}` has LoRA apart from its base: export it with `--merge` (live.{teacher}.model)")
    if manifest.encoder.fingerprint != fingerprint(recipe.student.encoder):
        raise InputError(
            f"`{config.model}` hears through another encoder than the student's `{recipe.student.encoder}` (live.{teacher}.model)"
        )
    _same_positions(recipe, teacher, config, projector_config(Path(config.model), manifest))


def _check_speech_llm(recipe: Recipe, teacher: str, config: SpeechConfig) -> None:
    kind = read_config(resolve(config_home(config.model, recipe.student.config_root), weights=False)).model_type
    if kind not in SPEECH_LLMS:
        raise InputError(
            f"`{config.model}` is neither an export nor a speech LLM ({', '.join(SPEECH_LLMS)}), but `{kind}` (live.{teacher}.model)"
        )
    if recipe.student.encoder != config.model:
        raise InputError(
            f"`{config.model}` hears through its own encoder, the student through `{recipe.student.encoder}`: "
            f"set `student.encoder` to it (live.{teacher}.model)"
        )
    _same_positions(recipe, teacher, config, OWN_PROJECTOR)


def _same_positions(recipe: Recipe, teacher: str, config: SpeechConfig, other: Any) -> None:
    """Raises InputError where student and teacher would not have one position beside the other."""
    blocks: list[Any] = [recipe.student.projector, other]
    with torch.device("meta"):
        ours, theirs = (PROJECTORS.get(block.kind)(block, 8, 8) for block in blocks)
    if any(ours.positions(frames) != theirs.positions(frames) for frames in (1, 50, 99, 1500)):
        raise InputError(f"`{config.model}` makes another number of audio positions than the student's projector (live.{teacher}.model)")


def teacher_prompts(recipe: Recipe, prompt: Prompt) -> dict[str, Prompt]:
    """The prompt of every live teacher that reads, in its own tokenizer. Raises InputError where its turns end with another token."""
    prompts = {}
    for name, config in recipe.live.items():
        if config.kind == "self":
            prompts[name] = prompt
        elif isinstance(config, TextLlmConfig):
            prompts[name] = Prompt(prompt.text, load_tokenizer(config.model), recipe.prompt.template)
            if prompts[name].end_of_turn != prompt.end_of_turn:
                raise InputError(f"`{config.model}` ends a turn with another token than the student's LLM (live.{name}.model)")
    return prompts


def build_student(recipe: Recipe) -> Student:
    """The student on this rank: frozen models partitioned as they load, what trains made from the seed (equal on all ranks)."""
    memory = read_ds_config(Path(recipe.deepspeed))
    dtype = getattr(torch, recipe.student.dtype)
    split = stage(memory) == 3
    encoder = load_encoder(recipe.student.encoder, dtype, split, memory)
    llm = load_causal_lm(recipe.student.llm, dtype, split, memory)
    config = recipe.student
    with torch_seed(recipe.seed, "student"):
        student = Student(encoder, llm, config.projector, config.normalise_layers, config.lora, config.mix)
        start(student.projector)
    if recipe.student.start:
        _start_from(student, Path(recipe.student.start))
    return student.to(local_device())


def _start_from(student: Student, folder: Path) -> None:
    """Layer mix and projector of an export, under LoRA if the student has it there. What trains is not partitioned yet."""
    own = dict(student.named_parameters())
    for name, tensor in trained_tensors(folder, read_manifest(folder)).items():
        home, _, last = name.rpartition(".")
        own.get(name, own.get(f"{home}.base_layer.{last}", tensor)).data.copy_(tensor)


def _check_start(recipe: Recipe) -> None:
    """Raises InputError for an export that a student of this recipe cannot start from."""
    if not recipe.student.start:
        return
    folder, key = Path(recipe.student.start), "student.start"
    manifest = read_manifest(folder)
    if manifest.lora is not None:
        raise InputError(f"`{folder}` has LoRA apart from its base: export it with `--merge`, and name its `llm` folder as the LLM ({key})")
    for part, name, base in (("encoder", recipe.student.encoder, manifest.encoder), ("llm", recipe.student.llm, manifest.llm)):
        if fingerprint(name) != base.fingerprint:
            raise InputError(f"`{folder}` was trained before another {part} than `{name}` ({key})")
    theirs = projector_config(folder, manifest), manifest.mix, manifest.normalise_layers
    if theirs != (recipe.student.projector, recipe.student.mix, recipe.student.normalise_layers):
        raise InputError(
            f"`{folder}` has another projector or layer mix than `student.projector`, `mix` and `normalise_layers` say ({key})"
        )


def _check_projector_start(recipe: Recipe) -> None:
    """Raises InputError where the projector cannot start from the model that it names; one on the hub is not asked yet."""
    source = getattr(recipe.student.projector, "init_from", None)
    if source is not None and Path(source).is_dir():
        check_start(meta_student(recipe).projector, source)


def build_method(recipe: Recipe, student: Student) -> Method:
    """The recipe's losses and live teachers. `student` is as it is at step 0: a snapshot is taken of it before any checkpoint is loaded."""
    memory = read_ds_config(Path(recipe.deepspeed))
    dtype = getattr(torch, recipe.student.dtype)
    split = stage(memory) == 3

    def load_llm(name: str) -> nn.Module:
        return load_causal_lm(name, dtype, split, memory)

    def load_speech(name: str) -> Hearer:
        if is_speech_llm(recipe, SpeechConfig(model=name)):
            whole: Any = load_llm(name)
            whole.set_attn_implementation("eager")
            config = OWN_PROJECTOR.model_copy(update={"init_from": name})
            own = LinearProjector(config, student.encoder.width, whole.config.get_text_config().hidden_size)
            start(own)
            return Hearer(layer_mix("last", student.encoder.layers, False), own, whole).to(local_device())
        folder, manifest = Path(name), read_manifest(Path(name))
        config = projector_config(folder, manifest)
        llm: Any = load_llm(llm_of(folder, manifest))
        llm.set_attn_implementation("eager")  # the others give no attention weights
        mix = layer_mix(manifest.mix, student.encoder.layers, manifest.normalise_layers)
        projector: Any = PROJECTORS.get(config.kind)(config, student.encoder.width, llm.config.get_text_config().hidden_size)
        for prefix, part in (("mix.", mix), ("projector.", projector)):
            tensors = {n.removeprefix(prefix): t for n, t in trained_tensors(folder, manifest).items() if n.startswith(prefix)}
            part.load_state_dict(tensors)
        return Hearer(mix, projector, llm).to(local_device())

    live = {name: build_live(name, config, student, load_llm, load_speech) for name, config in recipe.live.items()}
    shared = {name: shared_ids(recipe, name) for name in recipe.live}
    layered = [(n, c) for n, c in recipe.losses.items() if isinstance(c, LayerConfig) and not teacher_of(c)]
    stored = [_stored_states(recipe, name, config) for name, config in layered]
    return Method(losses=recipe.losses, streams=recipe.train.streams, teachers=live, shared=shared, stored=stored[0] if stored else None)
