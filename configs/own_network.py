"""A network of your own: detects a backdoor and repairs the network as `configs/disarm.py` does, without any image.

    python -m launch.repair --config=configs/own_network.py --workdir=DIR --config.model.checkpoint=victim.pt \\
        "--config.model.image_shape=(32, 32, 3)" "--config.data.mean=(.5, .5, .5)" "--config.data.std=(.2, .2, .2)"

The checkpoint is a PyTorch or safetensors state dict, a BackdoorBench attack_result.pt or an Orbax directory. The
architecture of a file is inferred from its tensors. An Orbax directory needs `--config.model.name`, and every size that
is not as published (`model.width`, `model.num_classes`). docs/bring.md lists the names under "Networks". A network that
is not in that list is Python code, a file or module with `(apply, variables)` in it:

    python -m launch.repair --config=configs/own_network.py --workdir=DIR --config.model.name=my_network.py:network

To measure the repair, bring test images: `--config.data.name=npz --config.data.path=FILE.npz`. The mean and standard
deviation of the network's normalisation go into `--config.data.mean` and `--config.data.std`. If the trigger is known:
`--config.attack.name=badnets` and its settings.

Expected: minutes on two CPU cores for a small network; a line says so if it will take longer than ten. If no class is
flagged, the network is returned unchanged. Other methods: `--config=configs/otbr.py`, `configs/clp.py` or
`configs/otbr_plus.py`, with the same flags.
"""

import ml_collections

from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.data.sources import DataConfig
from otbr_jax.models.registry import ModelConfig
from otbr_jax.settings import as_dict
from otbr_jax.studies.repair_config import repair_config


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    nothing = {"data": DataConfig(name="none"), "attack": AttackConfig(name="none"), "model": ModelConfig(name="")}
    return ml_collections.ConfigDict(as_dict(repair_config(defense="disarm", **nothing)))
