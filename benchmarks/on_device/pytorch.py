"""OTBR in PyTorch, as fast as PyTorch is without effort: bfloat16 by AMP, channels-last, `torch.compile`.

It starts from the same weights as ours and follows the published method: random unlearning, neuron weight changes,
pruning, transport layer by layer, interpolation. Plans come from POT: exact ones on the host, as published, or
Sinkhorn's on the device with the regularisation, threshold and iterations of ours.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import ot
import torch
from torch.nn import functional

from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.graph.graph import Layer
from otbr_jax.models.registry import ModelConfig
from otbr_jax.runs.provenance import ROOT
from otbr_jax.steps.unlearn import UnlearningConfig
from otbr_jax.types import Variables, named_leaves

sys.path.insert(0, str(ROOT / "tests"))
from torch_networks import PreActBlock, PreActResNet

torch.backends.cudnn.benchmark = True  # XLA, too, tries which algorithms are fast
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
State = dict[str, torch.Tensor]


class Convolution(NamedTuple):
    """A layer that is pruned and fused: the name of its weight, and the one whose neurons are its inputs, if any."""

    name: str
    fed_by: str | None


def device() -> torch.device:
    """The GPU, or the CPU where PyTorch sees none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Until the GPU has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def name_of(path: str) -> str:
    """The name in a state dict of an array of our variables, such as `layer1.0.conv1.weight`."""
    _, *module, leaf = path.split("/")
    return ".".join((*module, LEAVES[leaf]))


def state_of(variables: Variables) -> State:
    """Our variables as a state dict on the CPU."""
    state = {}
    for path, leaf in named_leaves(jax.device_get(variables)).items():
        array = np.asarray(leaf, np.float32)
        if path.endswith("kernel"):
            array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
        state[name_of(path)] = torch.from_numpy(np.array(array, order="C"))
    return state


def network(config: ModelConfig, variables: Variables) -> torch.nn.Module:
    """The PreAct-ResNet with these weights, on the device, channels-last, for training."""
    model = PreActResNet(PreActBlock, config.depth or (2, 2, 2, 2), config.num_classes, config.width or 64)
    model.load_state_dict(state_of(variables), strict=False)  # but for BatchNorm's counters
    return model.train().to(device(), memory_format=torch.channels_last)


def compiled(
    model: torch.nn.Module, batch_size: int, *, backend: str
) -> tuple[Callable[[torch.Tensor], torch.Tensor], bool]:
    """The model by `torch.compile` with a backend of it, and whether it could be compiled; a line says so if not."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        compiled = torch.compile(model, backend=backend)
        _loss(compiled, *_noise(batch_size)).backward()
    except Exception as error:  # whatever a missing compiler makes of it
        lines = str(error).strip().splitlines() or [""]
        print(f"torch.compile: not here, PyTorch runs as it is ({type(error).__name__}: {lines[0][:100]})", flush=True)
        compiled = None
    model.zero_grad()
    model.load_state_dict(state)
    return (model, False) if compiled is None else (compiled, True)


def _noise(batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(batch_size, 3, 32, 32, device=device()).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, 10, (batch_size,), device=device())


def _loss(forward: Callable[..., torch.Tensor], images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.autocast(device().type, torch.bfloat16):
        return functional.cross_entropy(forward(images), labels)


def unlearning(
    model: torch.nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], config: UnlearningConfig
) -> None:
    """Random unlearning, which changes `model`; `forward` is the model, maybe compiled."""
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate, momentum=config.momentum)
    for _ in range(config.steps):
        optimizer.zero_grad()
        (-_loss(forward, *_noise(config.batch_size))).backward()
        optimizer.step()


def convolutions(layers: Sequence[Layer]) -> list[Convolution]:
    """Our layers as PyTorch's; of several that feed one the last counts, as in the published method."""
    known = {layer.name for layer in layers}
    return [
        Convolution(
            name_of(layer.name), next((name_of(name) for name in reversed(layer.fed_by) if name in known), None)
        )
        for layer in layers
    ]


def changes(before: State, after: State, layers: Sequence[Convolution]) -> State:
    """Neuron weight changes, `{weight: [neurons]}`."""
    return {layer.name: (after[layer.name] - before[layer.name]).abs().flatten(1).sum(1) for layer in layers}


def prune(victim: State, scores: State, gamma: float) -> State:
    """The weights of the share `gamma` of the neurons that changed most become zero."""
    every = torch.cat(list(scores.values()))
    chosen = torch.zeros_like(every, dtype=torch.bool)
    chosen[every.topk(int(gamma * len(every))).indices] = True
    masks = dict(zip(scores, chosen.split([len(own) for own in scores.values()]), strict=True))
    return {
        name: tensor.masked_fill(masks[name][:, None, None, None], 0) if name in masks else tensor
        for name, tensor in victim.items()
    }


def fuse(
    pruned: State, victim: State, scores: State, layers: Sequence[Convolution], config: OTBRConfig, *, exact: bool
) -> State:
    """Pruned-to-backdoored fusion, from the first layer that holds a pruned neuron."""
    fused, maps, lam = dict(victim), dict[str, torch.Tensor](), config.fusion.lam
    for layer in layers:
        source, target = pruned[layer.name], victim[layer.name]
        if not maps and torch.equal(source, target):
            continue
        own = _plan(source.flatten(1), target.flatten(1), scores[layer.name], config, exact=exact)
        own = maps[layer.name] = own / own.sum(0)
        if layer.fed_by in maps:
            source = torch.einsum("oihw,ij->ojhw", source, maps[layer.fed_by])
        fused[layer.name] = lam * torch.einsum("oihw,op->pihw", source, own) + (1 - lam) * target
    return fused


def _plan(source: torch.Tensor, target: torch.Tensor, scores: torch.Tensor, config: OTBRConfig, *, exact: bool) -> Any:
    masses = torch.full_like(scores, 1 / len(scores)), scores / scores.sum()
    cost = torch.cdist(source, target, compute_mode="donot_use_mm_for_euclid_dist")
    if exact:
        first, second, costs = (tensor.double().cpu().numpy() for tensor in (*masses, cost))
        return torch.from_numpy(ot.emd(first, second / second.sum(), costs)).to(cost)
    own = config.fusion.transport
    return ot.sinkhorn(
        *masses, cost, own.epsilon * float(cost.mean()),
        method="sinkhorn_log", stopThr=own.threshold, numItermax=own.max_iterations, warn=False,
    )  # fmt: skip


def repair(
    model: torch.nn.Module,
    forward: Callable[[torch.Tensor], torch.Tensor],
    victim: Mapping[str, torch.Tensor],
    layers: Sequence[Convolution],
    config: OTBRConfig,
    *,
    exact: bool,
) -> State:
    """The whole method; `model` is given the victim's weights first."""
    model.load_state_dict(victim, strict=False)
    unlearning(model, forward, config.unlearning)
    with torch.no_grad():
        scores = changes(dict(victim), model.state_dict(), layers)
        return fuse(prune(dict(victim), scores, config.gamma), dict(victim), scores, layers, config, exact=exact)
