"""Five tiny runs whose values must not move while the code around them does: `python tests/golden_runs.py` records.

A golden is a digest of every array of every stage. It holds where it was recorded: on the processor, and with the
versions, that `platform` names, since compilers round in their own ways.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import platform
import sys
import tempfile

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=true"  # as `conftest.usual_compiler`
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import environment  # noqa: F401

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax import Layer, Network, NeuronGraph, OTBRConfig, UnlearningConfig
from otbr_jax.attacks.badnets import BadNetsConfig
from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.contrib import otbr_plus
from otbr_jax.contrib.images import SyntheticConfig
from otbr_jax.contrib.pruning_detection import PruningDetectionConfig
from otbr_jax.contrib.trigger_finetuning import TriggerFinetuningConfig
from otbr_jax.data.clean import CleanConfig
from otbr_jax.data.sources import DataConfig
from otbr_jax.defenses import tsbd
from otbr_jax.defenses.tsbd import TSBDConfig
from otbr_jax.graph.graph import Vector
from otbr_jax.inversion import PenalisedConfig
from otbr_jax.models.registry import ModelConfig
from otbr_jax.settings import change
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.steps.select import SelectionConfig
from otbr_jax.steps.unlearn import CleanUnlearningConfig
from otbr_jax.studies.repair import repair
from otbr_jax.studies.repair_config import repair_config
from otbr_jax.types import named_leaves
from otbr_jax.victims.training import TrainingConfig

FOLDER = pathlib.Path(__file__).parent / "goldens"
SEARCH = PenalisedConfig(steps=4, images=10)
DETECTION = PruningDetectionConfig(
    gamma=(0.1, 0.3),
    lam=(0.5, 0.75),
    synthetic=SyntheticConfig(images=20, steps=4),
    patch=SEARCH,
    perturbation=SEARCH,
    threshold=-9.0,
)
VICTIM = {
    "model": ModelConfig(name="preact_resnet10", width=4, image_shape=(8, 8, 1)),
    "attack": AttackConfig(badnets=BadNetsConfig(size=2)),
    "training": TrainingConfig(epochs=2, batch_size=128),
}
OTBR = repair_config(
    **VICTIM,
    otbr=OTBRConfig(unlearning=UnlearningConfig(steps=3, batch_size=16), gamma=0.2),
    sweep=otbr_plus.SweepConfig(gamma=(0.05, 0.2), lam=(0.5, 1.0)),
)
TRIGGER_FINETUNING = TriggerFinetuningConfig(
    triggers=1,
    rounds=1,
    relearnings=1,
    relearned=5,
    patch=SEARCH,
    perturbation=SEARCH,
    finetuning=FinetuningConfig(epochs=1, batch_size=10),
    shares=(0.0, 0.5, 1.0),
)
OTBR_PLUS = change(OTBR, detection=DETECTION, trigger_finetuning=TRIGGER_FINETUNING)
UNCHANGED = change(OTBR_PLUS, detection=dataclasses.replace(DETECTION, threshold=2.0))
TSBD = repair_config(
    **VICTIM,
    defense="tsbd",
    clean=CleanConfig(crop_padding=1),
    detection=DETECTION,
    tsbd=TSBDConfig(
        unlearning=CleanUnlearningConfig(max_epochs=6, batch_size=32, learning_rate=1e-3),
        finetuning=FinetuningConfig(epochs=3, batch_size=32),
    ),
    selection=SelectionConfig(n=(0.1, 0.4), m=(0.5, 1.0), folds=2),
    sweep=tsbd.SweepConfig(n=(0.1,), m=(0.5,)),
)
OWN_NETWORK = repair_config(
    model=ModelConfig(name=f"{pathlib.Path(__file__)}:stated", image_shape=(6, 6, 1), num_classes=3),
    data=DataConfig(name="none"),
    otbr=OTBRConfig(unlearning=UnlearningConfig(steps=2, batch_size=8), gamma=0.3),
    sweep=otbr_plus.SweepConfig(gamma=()),
)
RUNS = {"otbr": OTBR, "otbr_plus": OTBR_PLUS, "unchanged": UNCHANGED, "tsbd": TSBD, "own_network": OWN_NETWORK}


def stated(first_to_second: tuple[int, ...] = tuple(range(8))):
    """A network of one's own: two convolutions and a classifier, with its graph stated by hand."""
    mean = jnp.linspace(0.3, 0.7, 36).reshape(6, 6, 1)

    def apply(variables, images):
        params, x = variables["params"], images - mean
        for name in ("first", "second"):
            x = jax.lax.conv_general_dilated(
                x, params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + params[f"{name}_bias"])
        return x.mean((1, 2)) @ params["classifier"]

    keys = jax.random.split(jax.random.key(5), 5)
    shapes = {"first": (3, 3, 1, 8), "first_bias": (8,), "second": (3, 3, 8, 8), "second_bias": (8,)}
    shapes["classifier"] = (8, 3)
    params = {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
    graph = NeuronGraph(
        (
            Layer("params/first", "conv", (3,), (2,), 8, 1, {}, (), (Vector("params/first_bias", 0),)),
            Layer(
                *("params/second", "conv", (3,), (2,), 8, 8, {"params/first": first_to_second}, ()),
                (Vector("params/second_bias", 0),),
            ),
            Layer(
                *("params/classifier", "dense", (1,), (0,), 3, 8, {"params/second": tuple(range(8))}),
                main_path=False,
            ),
        )
    )
    return Network(apply, (6, 6, 1), 3), {"params": params}, graph


def here() -> dict[str, str]:
    """What rounds: the processor and the compilers."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    found = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    flags = hashlib.sha256(found.get("flags", found.get("Features", "")).encode()).hexdigest()[:12]
    return {
        "processor": f"{platform.machine()}, {found.get('model name', 'unknown')}, {flags}",
        "versions": ", ".join(f"{package.__name__} {package.__version__}" for package in (jax, jax.lib, np)),
    }


def digests(values) -> dict[str, str]:
    """A digest of every array of a pytree, by its name."""
    found = {}
    for name, leaf in named_leaves(values).items():
        array = np.ascontiguousarray(leaf)
        content = f"{array.dtype} {array.shape}\n".encode() + array.tobytes()
        found[name] = hashlib.sha256(content).hexdigest()[:16]
    return found


def run(name: str, folder: pathlib.Path):
    """One of the runs; those of one victim share a working directory."""
    return repair(RUNS[name], folder, results=name, devices=jax.local_devices()[:1])


def victim(name: str) -> str:
    """Whose network a run is about."""
    return "own" if name == "own_network" else "victim"


def all_digests(result) -> dict[str, dict[str, str]]:
    """The digests of a run: of every stage, and of the network that it leaves."""
    found = {stage: digests(done.value) for stage, done in result.stages.items()}
    return found | {"repaired": digests(result.variables)}


def record() -> None:
    """Writes tests/goldens/NAME.json for every run."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in RUNS:
            found = all_digests(run(name, pathlib.Path(scratch) / victim(name)))
            golden = {"platform": here(), "stages": found}
            (FOLDER / f"{name}.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    record()
