"""A network that somebody brings: told from its file, and measured with nothing that was not named."""

import dataclasses

import jax
import pytest
import torch
from launching import launch
from torch_networks import PreActBlock, PreActResNet

from launch.user_network import settings_of_user_network
from otbr_jax import InputError
from otbr_jax.interop.state_dict import tensor_name, tensor_shape
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.runs.checkpoints import save_checkpoint
from otbr_jax.runs.networks import open_network
from otbr_jax.settings import change
from otbr_jax.studies.repair_config import repair_config
from otbr_jax.types import named_leaves


def opened(model):
    """The settings of a network with what its file says of it."""
    return open_network(model).config


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """A PyTorch file of a PreAct-ResNet18 of width 4 with seven classes."""
    file = tmp_path_factory.mktemp("brought") / "victim.pt"
    torch.save(PreActResNet(PreActBlock, (2, 2, 2, 2), 7, 4).state_dict(), file)
    return file


@pytest.mark.parametrize(
    ("model", "flags", "data", "attack"),
    [
        ({}, (), "digits", "badnets"),  # the configuration's own victim
        ({"checkpoint": "v.pt"}, ("model.checkpoint",), "none", "none"),
        ({"checkpoint": "v.pt"}, ("model.checkpoint", "data.name"), "digits", "none"),
        ({"checkpoint": "v.pt"}, ("model.checkpoint", "attack"), "none", "badnets"),
        ({"name": "own.py:network"}, ("model.name",), "none", "none"),
        ({"checkpoint": "v.pt"}, (), "digits", "badnets"),  # a configuration that says so itself
    ],
)
def test_data_and_trigger_of_a_configuration_are_its_own_victims(model, flags, data, attack):
    config = repair_config(model=ModelConfig(**model))
    found = settings_of_user_network(config, is_set=lambda name: name in flags)
    assert (found.victim.data.name, found.victim.attack.name) == (data, attack)
    assert found.victim.model.name == ("" if flags[:1] == ("model.checkpoint",) else config.victim.model.name)
    same = change(found, data=config.victim.data, attack=config.victim.attack, model=config.victim.model)
    assert same == config


def test_a_file_tells_its_network(victim):
    model = ModelConfig(name="", checkpoint=str(victim), image_shape=(16, 16, 3))
    told = {"name": "preact_resnet18", "width": 4, "num_classes": 7, "image_shape": (16, 16, 3)}
    assert opened(model) == dataclasses.replace(model, **told)
    assert opened(ModelConfig()) == ModelConfig()
    with pytest.raises(InputError, match=r"^model.width: expected 4, that of the network in .*victim.pt, found 64"):
        opened(dataclasses.replace(model, width=64))
    with pytest.raises(InputError, match=r"^model.num_classes: expected 7, that of the network in .*, found 43"):
        opened(dataclasses.replace(model, num_classes=43))


def test_what_a_file_tells_besides(tmp_path):
    """The published width is none; a depth that is not published has to be given; a ViT tells the sides of images."""
    torch.save(PreActResNet(PreActBlock, (1, 1, 1, 1), 10, 64).state_dict(), tmp_path / "thin.pt")
    model = ModelConfig(name="", checkpoint=str(tmp_path / "thin.pt"), depth=(1, 1, 1, 1))
    found = opened(model)
    assert (found.width, found.depth) == (0, (1, 1, 1, 1))
    vit = ModelConfig(name="vit_b_16", width=64, depth=(1,), image_shape=(64, 64, 3))
    _, init = registry.build(vit)
    leaves = named_leaves(init(jax.random.key(0)))
    tensors = {tensor_name(name): torch.zeros(tensor_shape(name, leaf.shape)) for name, leaf in leaves.items()}
    torch.save(tensors, tmp_path / "vit.pt")
    found = opened(ModelConfig(name="", checkpoint=str(tmp_path / "vit.pt"), depth=(1,)))
    assert (found.name, found.image_shape) == ("vit_b_16", (64, 64, 3))


def test_what_tells_no_network(tmp_path):
    with pytest.raises(InputError, match="^model.checkpoint: expected a file to infer the network from, or a model"):
        opened(ModelConfig(name=""))
    save_checkpoint(tmp_path / "orbax", {"a": torch.zeros(2).numpy()})
    with pytest.raises(InputError, match=r"^model.name: expected a name, which an Orbax checkpoint does not hold"):
        opened(ModelConfig(name="", checkpoint=str(tmp_path / "orbax")))
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"^model.name: expected a name, since the tensors of .*a.pt are those of no"):
        opened(ModelConfig(name="", checkpoint=str(tmp_path / "a.pt")))


def test_programs_ask_for_no_name_and_use_nothing_that_was_not_named(victim, tmp_path):
    asked = launch("inspect_network", f"--config.model.checkpoint={victim}")
    assert asked.returncode == 0, asked.stderr
    assert "\n21 layers, 307 neurons, " in asked.stdout
    refused = launch(
        "repair",
        "--config=configs/tsbd.py",
        f"--workdir={tmp_path / 'w'}",
        f"--config.model.checkpoint={victim}",
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: clean.name: expected clean images of your own")
    assert not (tmp_path / "w").exists()
