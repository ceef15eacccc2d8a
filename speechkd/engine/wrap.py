"""Wraps a module in DeepSpeed and offers forward, backward, step and optimizer state to the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from speechkd.core import dist
from speechkd.core.errors import InputError
from speechkd.core.tensors import Stored, read_tensor
from speechkd.engine.ds_config import OptimValues, Precision, full_ds_config
from speechkd.engine.zero import count_gathers, import_deepspeed, init_distributed, is_partitioned, local_device, read_partition


class Engine:
    """A module whose trainable parameters are optimised by AdamW under DeepSpeed.

    `ds_config`: from `read_ds_config`; `accumulate`: number of micro-batches of one global step on this rank; `clip`: maximal gradient
    norm (0: none). The module may hold frozen and already partitioned parts. `leaves`: transformer blocks, each of which ZeRO-3 gathers as
    one unit, forward and backward. Raises InputError if nothing is trainable.
    """

    def __init__(
        self,
        module: nn.Module,
        optim: OptimValues,
        ds_config: Mapping[str, Any],
        accumulate: int,
        clip: float,
        precision: Precision = "fp32",
        leaves: Sequence[nn.Module] = (),
    ) -> None:
        init_distributed()
        trainable = [p for p in module.parameters() if p.requires_grad]
        if not trainable:
            raise InputError("nothing to train: every parameter of the student is frozen")
        self._place(module, torch.bfloat16 if precision == "bf16" else torch.float32)
        config = full_ds_config(ds_config, optim, accumulate, clip, precision)
        deepspeed = import_deepspeed()
        for leaf in leaves:
            deepspeed.utils.set_z3_leaf_module(leaf, True)
        self._ds = deepspeed.initialize(model=module, model_parameters=trainable, config=config)[0]
        self._keep_frozen()
        self.gathers = count_gathers()
        """all-gathers of ZeRO-3 so far; there is none with one rank"""
        self.skipped = 0
        """number of steps skipped because a gradient was not finite; they change no parameter or moment on any rank"""
        self.skipped_in_a_row = 0
        self._dropped_norm: float | None = None

    def _keep_frozen(self) -> None:
        """Small frozen parameters stay whole on every rank: DeepSpeed would gather them again after every optimizer step, for nothing."""
        outer = self._ds.optimizer
        if hasattr(outer, "persistent_parameters"):
            outer.persistent_parameters = [p for p in outer.persistent_parameters if p.requires_grad]

    def _place(self, module: nn.Module, dtype: torch.dtype) -> None:
        """Move and cast unpartitioned parameters: DeepSpeed does neither if any parameter is already partitioned."""
        for param in module.parameters():
            if not is_partitioned(param):
                param.data = param.data.to(self.device, dtype)
        for buffer in module.buffers():
            buffer.data = buffer.data.to(self.device)

    @property
    def module(self) -> nn.Module:
        """The module that was wrapped."""
        module: nn.Module = self._ds.module
        return module

    @property
    def device(self) -> torch.device:
        """The device for inputs."""
        return local_device()

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) of all trainable parameters, in the same order on every rank."""
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]

    def forward(self, *inputs: Any) -> Any:
        """The module's forward; partitioned parameters are gathered just in time."""
        return self._ds(*inputs)

    __call__ = forward

    def release(self) -> None:
        """Partition what forwards without a backward have left whole: ZeRO-3 keeps it for the backward. Collective, between steps."""
        optimizer = self._ds.optimizer
        if hasattr(optimizer, "empty_partition_cache"):  # of stage 3
            optimizer.empty_partition_cache()

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradient of a micro-batch.

        `loss` is `world_size x total / count`, `count` over the whole global step: DeepSpeed sums micro-batches but averages ranks.
        """
        self._ds.backward(loss, scale_wrt_gas=False)

    def step(self) -> bool:
        """Call once after every micro-batch. After the last one of a global step it clips and updates; True if it updated.

        A gradient that is not finite on any rank skips the update on all ranks (its norm is reduced over ranks); `skipped` counts these.
        """
        boundary = self._ds.is_gradient_accumulation_boundary()
        self._ds.step()
        if not boundary:
            return False
        updated = not self._ds.optimizer.overflow
        skipped = not updated and self._dropped_norm is None
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        return updated

    def drop_when(self, drops: Callable[[float], bool]) -> None:
        """Ask `drops` before every update, with the norm of the gradient over all ranks; True drops the update on this rank.

        All ranks must say the same. DeepSpeed has read the norm on the host at this point in any case: nothing waits longer. To it the
        norm then seems infinite, so a dropped update takes the way of one that is not finite; `skipped` does not count it.
        """
        outer = self._ds.optimizer
        name = "_get_norm_groups" if hasattr(outer, "_get_norm_groups") else "scaled_global_norm"  # of stage 3, of stage 2
        measure = getattr(outer, name)

        def measured() -> Any:
            found = measure()
            norms = [float(norm) for norm in (found if isinstance(found, list) else [found])]
            norm = math.hypot(*norms) if all(value >= 0 for value in norms) else math.inf  # -1 stands for a norm that is not finite
            self._dropped_norm = norm if drops(norm) else None
            if self._dropped_norm is None:
                return found
            return [math.inf] if isinstance(found, list) else math.inf

        setattr(outer, name, measured)

    def set_lr(self, lr: float) -> None:
        """Learning rate of the next step."""
        for group in self._ds.optimizer.param_groups:
            group["lr"] = lr

    def grad_norm(self) -> float:
        """Norm of the last global step's gradient over all ranks, before clipping; infinite if it was skipped, NaN before the first."""
        norm = self._ds.get_global_grad_norm() if self._dropped_norm is None else self._dropped_norm
        return math.nan if norm is None else float(norm)

    def train(self, mode: bool = True) -> None:
        """Training or evaluation mode."""
        self._ds.train(mode)

    def master_weight(self, param: nn.Parameter) -> torch.Tensor:
        """The whole float32 weight that the optimizer keeps for `param`. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        return _present(safe_get_full_fp32_param(param))

    def moment(self, param: nn.Parameter, key: str) -> torch.Tensor:
        """The whole Adam moment `exp_avg` or `exp_avg_sq` of `param`; zeros before the first step. Collective."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self._inner_states_ready():
            return torch.zeros(tuple(getattr(param, "ds_shape", param.shape)))
        return _present(safe_get_full_optimizer_state(param, key))

    def bring_to_host(self, param: nn.Parameter, key: str, into_N: torch.Tensor | None) -> None:
        """The whole float32 weight (key `""`) or Adam moment of `param` into rank 0's flat tensor in host memory. Collective.

        `into_N` has `host_size(param)` elements, of which the first are the parameter's; other ranks give None. On a GPU the last copy is
        only queued. Only rank 0 receives, and on CPUs straight into its place.
        """
        if not is_partitioned(param):
            whole = self.moment(param, key) if key else self.master_weight(param)
            if into_N is not None:
                into_N[: whole.numel()].copy_(whole.flatten(), non_blocking=True)
            return
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        if key and not self._inner_states_ready():
            part = torch.zeros(param.ds_tensor.numel(), device=self.device)  # type: ignore[attr-defined]
        else:
            part = _present(safe_get_local_optimizer_state(param, key) if key else safe_get_local_fp32_param(param)).detach()
        whole_N = None
        if into_N is not None:
            whole_N = into_N if part.device == into_N.device else torch.empty_like(into_N, device=part.device)
        dist.gather_to_rank_zero(part, None if whole_N is None else list(whole_N.split(part.numel())))
        if whole_N is not None and into_N is not None and whole_N is not into_N:
            into_N.copy_(whole_N, non_blocking=True)

    def host_size(self, param: nn.Parameter) -> int:
        """Elements that `bring_to_host` needs: the parameter's, and the padding of its partitions."""
        return param.ds_tensor.numel() * dist.world_size() if is_partitioned(param) else param.numel()  # type: ignore[attr-defined]

    def adam_step(self) -> int:
        """Number of Adam updates without skipped steps (the exponent of the bias correction)."""
        states = self._ds.optimizer.optimizer.state
        return int(max((float(s["step"]) for s in states.values() if "step" in s), default=0))

    def restore(self, param: nn.Parameter, stored: Mapping[str, Stored]) -> None:
        """Load this rank's part of `param`: Adam's moments, and the float32 weight under key `""`. Call `prepare_restore` first."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        local = is_partitioned(param)  # the "full" setters of ZeRO-3 fail where the size is not a multiple of the number of ranks
        for key, source in stored.items():
            value = (read_partition(param, source, torch.float32) if local else read_tensor(source, torch.float32)).to(self.device)
            if key:
                (safe_set_local_optimizer_state if local else safe_set_full_optimizer_state)(param, value, key)
            else:
                (safe_set_local_fp32_param if local else safe_set_full_fp32_param)(param, value)

    def prepare_restore(self, adam_step: int) -> None:
        """Create Adam's state, which does not exist before its first step, so that `restore` can fill it."""
        outer = self._ds.optimizer
        inner = outer.optimizer
        for flat in self._flat_partitions():
            zeros = {"exp_avg": torch.zeros_like(flat), "exp_avg_sq": torch.zeros_like(flat)}
            inner.state[flat] = {"step": torch.tensor(float(adam_step)), **zeros}
        if hasattr(outer, "_lazy_init_hp_params_optimizer_state"):  # stage 2 maps parameters to their slice of the state only now
            outer._lazy_init_hp_params_optimizer_state()

    def _flat_partitions(self) -> list[torch.Tensor]:
        outer = self._ds.optimizer
        flats = getattr(outer, "fp32_partitioned_groups_flat", None)
        return list(outer.single_partition_of_fp32_groups if flats is None else flats)

    def _inner_states_ready(self) -> bool:
        states = self._ds.optimizer.optimizer.state
        return all("exp_avg" in states.get(flat, {}) for flat in self._flat_partitions())


def _present(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None, "the optimizer does not own this parameter"
    return value
