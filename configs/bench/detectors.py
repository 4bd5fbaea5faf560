"""Four detectors on the same networks: digits' VGG, six attacks with two seeds each, and ten clean networks.

    python -m launch.bench --grid=configs/bench/detectors.py --workdir=runs/disarm

Victims are those of `configs/bench/disarm.py`, reloaded from its working directory, and two of WaNet. The threshold of
`trigger_size`, the default's detector, comes from clean networks with seeds from 10 on; seeds here are below 10. The
other detectors have their published thresholds. Neural Cleanse gets 5 % of the training set, 65 images. Up to a minute
for each pair; `--only=/mm_bd/` runs one detector. ROC curves are drawn in `WORKDIR/roc.png`.
"""

from configs.bench.disarm import VGG
from configs.bench.otbr_plus import digits
from otbr_jax.detectors.registry import DETECTORS
from otbr_jax.studies.bench import Bench
from otbr_jax.studies.detection import detected_by

ATTACKS = ("badnets", "blended", "trojan", "lf", "input_aware", "wanet")
VICTIMS = (
    *(digits(*VGG, attack, seed) for seed in (0, 1) for attack in ATTACKS),
    *(digits(*VGG, "none", seed) for seed in range(10)),
)


def get_grid() -> Bench:
    """Every detector on every victim."""
    return Bench("detectors", tuple(detected_by(name, victim) for victim in VICTIMS for name in DETECTORS))
