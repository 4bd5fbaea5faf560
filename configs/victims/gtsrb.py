"""A victim on GTSRB, the German traffic signs: PreAct-ResNet18, trained as published or fast.

    python -m launch.prepare_data --name=gtsrb
    python -m launch.train_victim --config=configs/victims/gtsrb.py:badnets --workdir=DIR
    python -m launch.train_victim --config=configs/victims/gtsrb.py:wanet,fast --workdir=DIR

After the colon: one of badnets, blended, sig, lf, ssba, wanet, input_aware, trojan, label_consistent, ftrojan, bpp,
ctrl, lira, adaptive_pictures, adaptive_reach, adaptive_channels, or none for a clean network; and
`fast` for the fast recipe. Every field is a flag, such as `--config.model.width=16`.
"""

import ml_collections

from configs.recipes import victim


def get_config(argument: str = "badnets") -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    return victim("gtsrb", argument)
