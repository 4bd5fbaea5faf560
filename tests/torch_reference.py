"""Files of reference numbers as another implementation writes them: OTBR and TSBD in PyTorch, for a small VGG."""

import copy
import json

import numpy as np
import ot
import torch
from torch import nn
from torch.nn import functional

WIDTH, SIZE, CLASSES, STEPS, BATCH = 4, 8, 3, 4, 8
TSBD = {"n": 0.25, "m": 0.7, "r": 0.05, "alpha": 0.7, "lr": 0.01, "momentum": 0.9, "ft_steps": 3}


class VGG(nn.Module):
    """Other names than this project's; biases of the convolutions, which BatchNorm takes away again, if asked for."""

    def __init__(self, *, bias):
        super().__init__()
        layers, inputs = [], 1
        for entry in (1, "M", 2, "M", 4, 4, "M", 8, 8):
            if entry == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                outputs = entry * WIDTH
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
        self.body = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


def write_reference(path, *, seed=0, gammas=("0.05", "0.3"), lam=0.5, bias=False):
    """Every array of OTBR and TSBD under the keys of a reference file."""
    torch.manual_seed(seed)
    model = VGG(bias=bias)
    for layer in model.body:
        if isinstance(layer, nn.BatchNorm2d):  # a shift of zero puts zeroed neurons where only rounding decides on ReLU
            nn.init.normal_(layer.bias, 0, 0.1)
    convolutions = [f"body.{i}.weight" for i, layer in enumerate(model.body) if isinstance(layer, nn.Conv2d)]
    arrays = {"probe/images": torch.rand(6, 1, SIZE, SIZE), "otbr/noise": torch.rand(STEPS, BATCH, 1, SIZE, SIZE)}
    arrays["otbr/labels"] = torch.randint(0, CLASSES, (STEPS, BATCH))
    victim = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def logits(state):
        model.load_state_dict(state)
        with torch.no_grad():
            return model.eval()(arrays["probe/images"])

    unlearned = _unlearn(model, arrays["otbr/noise"], arrays["otbr/labels"])
    nwc = {name: (unlearned[name] - victim[name]).abs().flatten(1).sum(1) for name in convolutions}
    arrays |= {f"victim/{name}": tensor for name, tensor in victim.items()}
    arrays |= {f"otbr/unlearned/{name}": tensor for name, tensor in unlearned.items()}
    arrays |= {f"otbr/nwc/{name}": values for name, values in nwc.items()}
    arrays |= {"victim_logits": logits(victim), "otbr/unlearned_logits": logits(unlearned)}
    ranked = sorted(((float(v), f"{n}:{i}") for n in convolutions for i, v in enumerate(nwc[n])), reverse=True)
    for gamma in gammas:
        chosen = [name for _, name in ranked[: int(float(gamma) * len(ranked))]]
        pruned = {name: tensor.clone() for name, tensor in victim.items()}
        for name in chosen:
            layer, index = name.split(":")
            pruned[layer][int(index)] = 0
        fused = _fuse(pruned, victim, nwc, lam, first={name.split(":")[0] for name in chosen})
        arrays |= {f"otbr/pruned_{gamma}/neurons": np.array(chosen), f"otbr/pruned_{gamma}/logits": logits(pruned)}
        arrays |= {f"otbr/fused_{gamma}/{name}": fused[name] for name in convolutions}
        arrays[f"otbr/fused_{gamma}/logits"] = logits(fused)
    otbr = {"lr": 1e-3, "momentum": 0.9, "steps": STEPS, "batch": BATCH, "lambda": lam}

    images = arrays["tsbd/images"] = torch.rand(STEPS, BATCH, 1, SIZE, SIZE).half()
    labels = arrays["tsbd/labels"] = torch.randint(0, CLASSES, (STEPS, BATCH))
    model.load_state_dict(victim)
    unlearned = _unlearn(model, images.float(), labels)
    changes = {name: (unlearned[name] - victim[name]).abs() for name in convolutions}
    zeroed = _zeroed(changes, TSBD["n"], TSBD["m"])
    start = {name: tensor.masked_fill(zeroed[name], 0) if name in zeroed else tensor for name, tensor in victim.items()}
    arrays |= {f"tsbd/nwc/{name}": change.flatten(1).sum(1) for name, change in changes.items()}
    arrays |= {f"tsbd/zeroed_{TSBD['n']}_{TSBD['m']}/{name}": mask for name, mask in zeroed.items()}
    arrays["tsbd/reinit_logits"] = logits(start)
    steps = TSBD["ft_steps"]
    finetuned = _finetune(model, start, images[:steps].float(), labels[:steps])
    arrays |= {f"tsbd/finetuned/{name}": tensor for name, tensor in finetuned.items()}
    arrays["tsbd/finetuned_logits"] = logits(finetuned)
    meta = {"arch": "vgg", "width": WIDTH, "image_size": SIZE, "classes": CLASSES, "conv_layers": convolutions}
    np.savez(
        path,
        meta=json.dumps(meta | {"otbr": otbr, "tsbd": TSBD}),
        **{name: np.asarray(a) for name, a in arrays.items()},
    )


def _unlearn(model, batches, labels):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    model.train()
    for images, own in zip(batches, labels, strict=True):
        optimizer.zero_grad()
        (-functional.cross_entropy(model(images), own)).backward()
        optimizer.step()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _zeroed(changes, n, m):
    """Of the neurons that changed most, the weights that changed most."""
    neurons = [(float(row.sum()), name, index) for name, change in changes.items() for index, row in enumerate(change)]
    chosen = sorted(neurons, key=lambda neuron: -neuron[0])[: int(n * len(neurons))]
    pool = sorted((float(c) for _, name, index in chosen for c in changes[name][index].flatten()), reverse=True)
    threshold = pool[int(m * len(pool)) - 1]
    masks = {name: torch.zeros_like(change, dtype=torch.bool) for name, change in changes.items()}
    for _, name, index in chosen:
        masks[name][index] = changes[name][index] >= threshold
    return masks


def _finetune(model, start, batches, labels):
    model.load_state_dict(start)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=TSBD["lr"], momentum=TSBD["momentum"])
    for images, own in zip(batches, labels, strict=True):
        first = _gradients(copy.deepcopy(model), images, own)
        ahead = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, gradient in zip(ahead.parameters(), first, strict=True):
                if gradient.norm() > 0:
                    parameter += TSBD["r"] * gradient / gradient.norm()
        second = _gradients(ahead, images, own)
        for parameter, g1, g2 in zip(model.parameters(), first, second, strict=True):
            parameter.grad = (1 - TSBD["alpha"]) * g1 + TSBD["alpha"] * g2
        optimizer.step()
        with torch.no_grad():
            model(images)  # only here do the statistics move
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _gradients(model, images, labels):
    return torch.autograd.grad(functional.cross_entropy(model(images), labels), list(model.parameters()))


def _fuse(pruned, victim, nwc, lam, *, first):
    fused, before = dict(victim), None
    for name, scores in nwc.items():
        if before is None and name not in first:
            continue
        source, target = pruned[name].flatten(1), victim[name].flatten(1)
        mass = (scores / scores.sum()).double().numpy()
        cost = torch.cdist(source, target, compute_mode="donot_use_mm_for_euclid_dist").double().numpy()
        plan = ot.emd(np.full(len(mass), 1 / len(mass)), mass / mass.sum(), cost)
        own = torch.tensor(plan / plan.sum(0), dtype=torch.float32)
        aligned = pruned[name] if before is None else torch.einsum("oihw,ij->ojhw", pruned[name], before)
        fused[name] = lam * torch.einsum("oihw,op->pihw", aligned, own) + (1 - lam) * victim[name]
        before = own
    return fused
