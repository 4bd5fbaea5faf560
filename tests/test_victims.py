"""Victims of every attack on a tiny network: made, trained, left on disk, taken up again, repaired."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny_runs import VICTIM

from otbr_jax import InputError, OTBRConfig, UnlearningConfig
from otbr_jax.attacks import adaptive, input_aware, lf, lira, ssba, trojan, wanet
from otbr_jax.attacks.badnets import BadNetsConfig
from otbr_jax.attacks.registry import ATTACKS, AttackConfig
from otbr_jax.contrib.otbr_plus import SweepConfig
from otbr_jax.data.sources import DataConfig
from otbr_jax.runs import loop
from otbr_jax.runs.orbax_folder import load_variables
from otbr_jax.settings import change
from otbr_jax.studies.repair import repair
from otbr_jax.studies.repair_config import repair_config
from otbr_jax.victims.config import VictimConfig
from otbr_jax.victims.train import train_victim
from otbr_jax.victims.training import TrainingConfig

MODEL = VICTIM["model"]
QUICK = AttackConfig(
    badnets=BadNetsConfig(size=2),
    lf=lf.LFConfig(steps=10, strength=0.3),
    ssba=ssba.SSBAConfig(steps=30, channels=4, bits=4, strength=0.3),
    wanet=wanet.WaNetConfig(s=3.0),
    input_aware=input_aware.InputAwareConfig(mask_steps=30, channels=4, density=0.2),
    trojan=trojan.TrojanConfig(steps=20),
    lira=lira.LIRAConfig(eps=0.2, channels=4),
    adaptive_pictures=adaptive.ImagesAwareConfig(size=2, pictures=60),
    adaptive_reach=adaptive.SizeAwareConfig(size=2),
    adaptive_channels=adaptive.ChannelsAwareConfig(size=2),
)
CONFIG = VictimConfig(model=MODEL, attack=QUICK, training=TrainingConfig(epochs=5, batch_size=32, measure_every=3))


def with_attack(config, name, **changes):
    attack = getattr(config, "victim", config).attack  # of settings of a repair, or of a victim
    return change(config, attack=dataclasses.replace(attack, name=name, **changes))


def train(workdir, config=CONFIG):
    return train_victim(config, workdir, devices=jax.local_devices()[:1])


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One working directory for all victims of one network: they share the clean one."""
    return tmp_path_factory.mktemp("victims") / "w"


# The others go the way of one of these, and input_aware is trained along in test_training; the bench trains them all at
# full size.
SLOW = tuple(name for name in ATTACKS if name not in ("lf", "label_consistent"))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in ("none", *ATTACKS)])
def test_every_attack_trains_a_victim(shared, name):
    if name != "none" and ATTACKS[name].needs_clean_network:
        train(shared, with_attack(CONFIG, "none"))
    victim, summary = train(shared, with_attack(CONFIG, name))
    assert summary["metrics"]["acc"] > 0.8
    assert json.loads((shared / "victim.json").read_text()) == summary
    assert [row["epoch"] for row in summary["history"]["measured"]] == [3, 5]
    assert len(summary["history"]["loss"]) == 5
    if name == "none":
        assert summary["metrics"]["asr"] is None
        assert summary["poisoned"] == 0
        assert summary["trigger"] is None
        return
    # On 8 x 8 images in 5 epochs not every attack can be learned; those that can have to be.
    if name in ("badnets", "blended", "lf"):
        assert summary["metrics"]["asr"] > 0.5
    assert summary["trigger"]["psnr"] > 0
    assert (shared / "trigger.html").exists()
    # One less of the 129 where the target class holds no more.
    assert summary["poisoned"] == (128 if ATTACKS[name].labels == "clean_label" else 129)
    assert set(victim.stages) == (
        {"victim"}
        | ({"attack"} if ATTACKS[name].make else set())
        | ({"clean"} if ATTACKS[name].needs_clean_network else set())
    )
    if "clean" in victim.stages:
        assert victim.stages["clean"].resumed  # the network of the attack `none`
    moved = dataclasses.replace(CONFIG, data=DataConfig(note="a copy", data_dir="/elsewhere"))
    again, _ = train(shared, with_attack(moved, name))  # neither trains anything again
    assert all(stage.resumed for stage in again.stages.values())
    assert (shared / "attack").exists() == bool(ATTACKS[name].make)


def test_a_victim_on_disk_is_repaired_and_measured_with_its_own_trigger(tmp_path):
    """The generator that was trained with the victim comes along; what is measured is the same."""
    config = with_attack(CONFIG, "input_aware")
    victim, summary = train(tmp_path / "v", config)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), victim.stage.value["variables"])
    loaded = load_variables(tmp_path / "v" / "victim", like, name="victim")
    jax.tree.map(np.testing.assert_array_equal, loaded, victim.stage.value["variables"])
    made, trained = victim.stages["attack"].value["generator"], victim.stage.value["assets"]["generator"]
    assert not np.array_equal(jax.tree.leaves(made)[0], jax.tree.leaves(trained)[0])
    options = {"otbr": OTBRConfig(unlearning=UnlearningConfig(steps=2, batch_size=16)), "sweep": SweepConfig(gamma=())}
    given = repair_config(
        model=dataclasses.replace(MODEL, checkpoint=str(tmp_path / "v" / "victim")),
        attack=dataclasses.replace(config.attack, assets=str(tmp_path / "v" / "attack")),
        **options,
    )
    result = repair(given, tmp_path / "r", devices=jax.local_devices()[:1])
    metrics = result.stages["evaluation"].value["metrics"]["victim"]
    assert float(metrics.asr) == pytest.approx(summary["metrics"]["asr"], abs=0.005)
    assert float(metrics.acc) == pytest.approx(summary["metrics"]["acc"], abs=0.005)
    for name in ("input_aware", "wanet"):  # also where a field could be drawn: it would be another than the victim's
        without = with_attack(change(given, attack=config.attack), name)
        with pytest.raises(InputError, match=f"attack.assets: expected the directory with the trigger of {name}"):
            repair(without, tmp_path / "r2", devices=jax.local_devices()[:1])
    with pytest.raises(InputError, match="attack.assets: expected none, badnets needs no arrays"):
        repair(with_attack(given, "badnets"), tmp_path / "r2", devices=jax.local_devices()[:1])
    other = change(given, attack=dataclasses.replace(given.victim.attack, name="ssba"))
    with pytest.raises(InputError, match="attack.assets: expected an array"):
        repair(other, tmp_path / "r3", devices=jax.local_devices()[:1])


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from otbr_jax.runs import loop
loop.SAVE_EVERY = 0.0
from test_victims import LONG, train
train({workdir!r}, LONG)
"""
LONG = with_attack(
    dataclasses.replace(CONFIG, training=TrainingConfig(epochs=8, batch_size=32, measure_every=2)), "input_aware"
)


@pytest.mark.slow
def test_a_killed_training_goes_on_inside_the_epochs_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)  # a constant that the code reads is part of a stage's identity
    code = KILLED.format(tests=str(pathlib.Path(__file__).parent), workdir=str(tmp_path / "w"))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    folder = tmp_path / "w" / "progress"
    while not [path for path in folder.glob("victim-*") if not path.suffix]:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed, _ = train(tmp_path / "w", LONG)
    assert not list(folder.iterdir())  # what was kept for going on is gone
    whole, _ = train(tmp_path / "whole", LONG)
    assert resumed.stage.digest == whole.stage.digest
    assert resumed.stages["attack"].resumed


def test_all_to_all_is_measured_as_such(tmp_path):
    _, summary = train(tmp_path / "w", with_attack(CONFIG, "badnets", labels="all_to_all", poisoning_ratio=0.5))
    assert summary["metrics"]["asr"] > 0.5


def test_bad_input(tmp_path):
    def bad(config, message):
        with pytest.raises(InputError, match=message):
            train(tmp_path / "w", config)

    few = dataclasses.replace(CONFIG, training=TrainingConfig(batch_size=1298))
    bad(few, "training.batch_size: expected at most 1297 images, found 1298")
    bad(with_attack(CONFIG, "wanet", poisoning_ratio=1e-4), "expected at least one poisoned image, found 0.0001")
    bad(
        dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, checkpoint="x")),
        "model.checkpoint: expected an Orbax checkpoint directory",
    )
    assert not (tmp_path / "w").exists()  # nothing is begun that cannot work
    with pytest.raises(InputError, match="expected a checkpoint, since data 'none' holds no training images"):
        train(tmp_path / "other", dataclasses.replace(CONFIG, data=DataConfig(name="none")))
    assert not (tmp_path / "other").exists()
