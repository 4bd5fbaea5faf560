from otbr_jax.contrib.otbr_plus import OTBRPlusInfo, OTBRSettings, otbr_plus
from otbr_jax.contrib.pruning_detection import PruningDetectionConfig
from otbr_jax.contrib.trigger_finetuning import TriggerFinetuningConfig
from otbr_jax.defenses.defend import Defended, defend
from otbr_jax.defenses.otbr import OTBRConfig, OTBRInfo, otbr
from otbr_jax.defenses.tsbd import TSBDConfig, TSBDInfo, tsbd
from otbr_jax.detectors.detect import detect
from otbr_jax.detectors.detector import Detector, Verdict
from otbr_jax.errors import InputError
from otbr_jax.graph.choose import choose_layers
from otbr_jax.graph.graph import Group, Layer, NeuronGraph, check_graph, permutation_error, permute
from otbr_jax.graph.trace import trace
from otbr_jax.inversion import InvertedTrigger, Penalised, Smallest, Within, invert, success_rate
from otbr_jax.plan import LongStep, Setup, Step, run, set_up
from otbr_jax.steps.activeness import Activeness, activeness
from otbr_jax.steps.finetune import FinetuningConfig, activeness_aware, finetune
from otbr_jax.steps.fuse import FusionConfig, fuse
from otbr_jax.steps.prune import neurons_to_prune, prune, reinitialize
from otbr_jax.steps.score import correlation, neuron_weight_changes, ranks
from otbr_jax.steps.transport import TransportConfig
from otbr_jax.steps.unlearn import (
    CleanUnlearningConfig,
    UnlearningConfig,
    clean_unlearning,
    noise_batches,
    random_unlearning,
    unlearn,
)
from otbr_jax.triggers import TriggerFamily
from otbr_jax.types import Batch, Network, Variables

__all__ = [
    "Activeness",
    "Batch",
    "CleanUnlearningConfig",
    "Defended",
    "Detector",
    "FinetuningConfig",
    "FusionConfig",
    "Group",
    "InputError",
    "InvertedTrigger",
    "Layer",
    "LongStep",
    "Network",
    "NeuronGraph",
    "OTBRConfig",
    "OTBRInfo",
    "OTBRPlusInfo",
    "OTBRSettings",
    "Penalised",
    "PruningDetectionConfig",
    "Setup",
    "Smallest",
    "Step",
    "TSBDConfig",
    "TSBDInfo",
    "TransportConfig",
    "TriggerFamily",
    "TriggerFinetuningConfig",
    "UnlearningConfig",
    "Variables",
    "Verdict",
    "Within",
    "activeness",
    "activeness_aware",
    "check_graph",
    "choose_layers",
    "clean_unlearning",
    "correlation",
    "defend",
    "detect",
    "finetune",
    "fuse",
    "invert",
    "neuron_weight_changes",
    "neurons_to_prune",
    "noise_batches",
    "otbr",
    "otbr_plus",
    "permutation_error",
    "permute",
    "prune",
    "random_unlearning",
    "ranks",
    "reinitialize",
    "run",
    "set_up",
    "success_rate",
    "trace",
    "tsbd",
    "unlearn",
]
