"""What the optimizers have in common: groups of parameters, each updated by one multi-tensor call, and their state."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mlperf_fast.errors import UserError
from mlperf_fast.ops.lists import Kept

Parameters = Iterable[Tensor] | Iterable[tuple[str, Tensor]]  # model.parameters(), or model.named_parameters()
ByName = Callable[[str], bool]  # a rule for the parameters of certain names


def none(name: str) -> bool:
    """The rule for no parameter."""
    return False


def named(parameters: Parameters) -> dict[str, Tensor]:
    """The parameters that are trained, by name; by their number where they come without names."""
    pairs = (item if isinstance(item, tuple) else (str(i), item) for i, item in enumerate(parameters))
    return {name: parameter for name, parameter in pairs if parameter.requires_grad}


def split(parameters: Parameters, key: Callable[[str], Any] = none) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """(key, parameters by name) for those with equal key(name) and dtype: an op takes one dtype a call."""
    parts: dict[Any, dict[str, Tensor]] = {}
    for name, parameter in named(parameters).items():
        parts.setdefault((key(name), parameter.dtype), {})[name] = parameter
    for (value, _), part in parts.items():
        yield value, part


class Group:
    """Parameters of one dtype that one call of an op updates, and what the optimizer keeps for each.

    masters  what the op updates. That is the parameters where they are float32. Others get float32 masters that start
             with the same values, and the op writes each parameter as the rounded copy of its master; so weights must
             be loaded before the optimizer is made
    state    by kind, such as "exp_avgs": a float32 tensor a parameter, zeros at first
    rule     the op's other arguments for this group
    """

    def __init__(self, parameters: dict[str, Tensor], state: Sequence[str], **rule: Any) -> None:
        self.names, self.parameters, self.rule = list(parameters), list(parameters.values()), rule
        self.rounded = self.parameters[0].dtype is not torch.float32
        self.masters: Sequence[Tensor] = self.parameters
        if self.rounded:
            self.masters = Kept(parameter.detach().float() for parameter in self.parameters)
        self.state = {kind: Kept(torch.zeros_like(x) for x in self.masters) for kind in state}

    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def lists(self, **others: Sequence[Any]) -> dict[str, Any]:
        """The op's lists, and `others` with a value a parameter, without parameters that got no gradient this time."""
        lists = {
            "params": self.masters,
            **self.state,
            **({"copies": self.parameters} if self.rounded else {}),
            **others,
        }
        gradients = self.gradients()
        if len(gradients) < len(self.parameters):
            given = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
            lists = {name: [values[i] for i in given] for name, values in lists.items()}
        return lists | {"grads": gradients}

    def kept(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds of the group: kind -> parameter's name -> tensor."""
        kinds = self.state | ({"masters": self.masters} if self.rounded else {})
        return {kind: dict(zip(self.names, tensors, strict=True)) for kind, tensors in kinds.items()}


class Optimizer:
    """An optimizer over groups. A subclass makes them and says in `update` which op is called for one.

    `begin(step)` puts this step's learning rate on the device, `gradients()` lists what a loss scaler must look at,
    `apply(found_inf)` updates unless `found_inf` (a device tensor) is set. The host decides nothing in it: it is the
    same work each time, and can be captured.
    """

    counts = True  # whether `step` counts; a subclass whose updates don't depend on it leaves it at 0

    def __init__(self, groups: Iterable[Any], schedule: Callable[[int], float], device: torch.device) -> None:
        self.groups = list(groups)
        self.schedule = schedule
        self.lr = torch.zeros((), device=device)
        self.step = torch.zeros((), device=device)  # updates done; those that found_inf skipped don't count

    def begin(self, step: int) -> None:
        self.lr.fill_(self.schedule(step))

    def gradients(self) -> list[Tensor]:
        return [gradient for group in self.groups for gradient in group.gradients()]

    def apply(self, found_inf: Tensor) -> None:
        if self.counts:
            self.step.add_(found_inf == 0)
        for group in self.groups:
            self.update(group, found_inf)

    def update(self, group: Group, found_inf: Tensor) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"step": self.step}
        for group in self.groups:
            for kind, tensors in group.kept().items():
                state.setdefault(kind, {}).update(tensors)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copies the values into place. UserError for the state of another optimizer or of other parameters."""
        load_tensors(f"{type(self).__name__}'s state", self.state_dict(), state)


def load_tensors(what: str, into: dict[str, Any], state: dict[str, Any]) -> None:
    """Copies tensors from one nested dictionary into another of the same form."""
    for name in dict.fromkeys([*into, *state]):
        if name not in into or name not in state:
            side = "the checkpoint doesn't hold" if name in into else "only the checkpoint holds"
            raise UserError(f"{what}: {side} {name!r}; resume with the model and the optimizer that wrote it")
        if isinstance(into[name], dict):
            load_tensors(f"{what}: {name}", into[name], state[name])
        elif into[name].shape != state[name].shape:
            found, expected = list(state[name].shape), list(into[name].shape)
            raise UserError(f"{what}: {name!r} has shape {found} in the checkpoint, expected {expected}")
        else:
            into[name].copy_(state[name])
