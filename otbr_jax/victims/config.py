"""The settings of a victim."""

from __future__ import annotations

from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.data.sources import DataConfig
from otbr_jax.models.registry import ModelConfig
from otbr_jax.settings import field, settings, wrong
from otbr_jax.victims.training import TrainingConfig


@settings("")
class VictimConfig:
    """Everything that decides a victim."""

    seed: int = field(
        default=0, at_least=0, below=2**32, doc="of every random choice; each stage gets a key of its own from it."
    )
    model: ModelConfig = field(default=ModelConfig(), doc="the network.")
    data: DataConfig = field(default=DataConfig(), doc="images to train and to measure with.")
    attack: AttackConfig = field(default=AttackConfig(), doc="the backdoor, and the trigger that ASR is measured with.")
    training: TrainingConfig = field(default=TrainingConfig(), doc="how the victim is trained.")

    def check(self) -> None:
        """The attacker's class is one of the network's."""
        if self.attack.target >= self.model.num_classes:
            raise wrong(self, "attack.target", f"a class in 0..{self.model.num_classes - 1}")
