"""What a stage's value depends on is in its identity, and nothing else is."""

import configparser
import dataclasses
import pathlib

import golden_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_otbr_plus import SYNTHETIC, TRIGGER_FINETUNING

from otbr_jax import Batch, FusionConfig, OTBRConfig
from otbr_jax.contrib.distill import DistillationConfig
from otbr_jax.contrib.trigger_finetuning import finetune_class
from otbr_jax.runs import identity
from otbr_jax.settings import change
from otbr_jax.studies.bench import Cell
from otbr_jax.studies.repair import repair

ROOT = pathlib.Path(__file__).parent.parent


def resumed(config, workdir):
    result = repair(config, workdir, devices=jax.local_devices()[:1])
    return {name for name, stage in result.stages.items() if stage.resumed}


def own_network(tmp_path, attribute, text=""):
    """The settings of the golden run's own network, from a copy of its file with more text."""
    file = tmp_path / "golden_copy.py"
    file.write_text((ROOT / "tests" / "golden_runs.py").read_text().replace("__file__", repr(str(file))) + text)
    model = dataclasses.replace(golden_runs.OWN_NETWORK.victim.model, name=f"{file}:{attribute}")
    return change(golden_runs.OWN_NETWORK, model=model)


def test_a_corrected_graph_runs_anew_what_reads_it(tmp_path):
    wrong = "\n\ndef own():\n    return stated((1, 0, 2, 3, 4, 5, 6, 7))\n"
    resumed(own_network(tmp_path, "own", wrong), tmp_path / "w")
    again = resumed(own_network(tmp_path, "own", "\n\ndef own():\n    return stated()\n"), tmp_path / "w")
    assert "fused" not in again
    assert "victim" in again


def test_a_constant_that_a_network_closes_over_runs_anew_what_calls_it(tmp_path):
    def own(middle):
        text = f"""
def own():
    mean = jnp.full((6, 6, 1), {middle})
    network, variables, graph = stated()
    return Network(lambda v, x: network.apply(v, x - mean), (6, 6, 1), 3), variables, graph
"""
        return own_network(tmp_path, "own", text)

    resumed(own(0.1), tmp_path / "w")
    again = resumed(own(0.2), tmp_path / "w")
    assert again == {"victim"}


@pytest.mark.slow
def test_measuring_names_the_synthetic_images_of_distillation(tmp_path):
    config = change(
        golden_runs.OTBR,
        detection=dataclasses.replace(golden_runs.DETECTION, gamma=()),
        distillation=DistillationConfig("labels", dataclasses.replace(golden_runs.TRIGGER_FINETUNING.finetuning)),
    )
    result = repair(config, tmp_path / "w", devices=jax.local_devices()[:1])
    assert "synthetic" in result.stages["evaluation"].provenance["parents"]


def test_a_cell_of_tsbd_depends_on_the_settings_of_detection():
    config = golden_runs.TSBD
    other = change(config, otbr=OTBRConfig(fusion=FusionConfig(lam=0.4)))
    assert Cell(config).id != Cell(other).id


def test_other_versions_of_what_computes_run_a_stage_anew(tmp_path, monkeypatch):
    config = own_network(tmp_path, "stated")
    resumed(config, tmp_path / "w")
    assert resumed(config, tmp_path / "w") >= {"unlearned", "scores", "pruned", "fused"}
    known = identity.versions()
    monkeypatch.setattr(identity, "versions", lambda: known | {"jax": "0.0"})
    assert "unlearned" not in resumed(config, tmp_path / "w")


@pytest.mark.slow
def test_a_run_without_relearning_does_not_depend_on_its_number_of_images(tiny):
    network, variables = tiny
    images = jax.random.uniform(jax.random.key(0), (40, *network.image_shape))
    batch = Batch(images, jnp.arange(40, dtype=jnp.int32) % 10)
    found = [
        finetune_class(
            *(network, variables, batch, 3),
            key=jax.random.key(1),
            config=dataclasses.replace(TRIGGER_FINETUNING, relearnings=0, relearned=images_of_class, shares=(1.0,)),
            synthetic=SYNTHETIC,
        )[0]
        for images_of_class in (5, 25)
    ]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_the_import_contract_covers_every_module_of_the_core():
    contract = configparser.ConfigParser()
    contract.read(ROOT / "setup.cfg")
    core = contract["importlinter:contract:core"]
    named = {name.removeprefix("otbr_jax.") for name in (core["source_modules"] + core["forbidden_modules"]).split()}
    here = {
        path.stem for path in (ROOT / "otbr_jax").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert here - {"__init__"} <= named
