"""A victim on the digits that ship with scikit-learn: a small PreAct-ResNet, seconds to minutes on two CPU cores.

    python -m launch.train_victim --config=configs/victims/digits.py:blended,fast --workdir=DIR

After the colon: one of badnets, blended, sig, lf, ssba, wanet, input_aware, trojan, label_consistent, ftrojan, bpp,
ctrl, lira, adaptive_pictures, adaptive_reach, adaptive_channels, or none for a clean network; and
`fast` for the fast recipe. SIG's waves and WaNet's warps hardly show on such small images.
"""

import ml_collections

from configs.recipes import model, victim


def get_config(argument: str = "badnets") -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    return victim("digits", argument, network=model("digits", "preact_resnet10", width=24))
