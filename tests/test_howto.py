"""The how-to pages, for users and contributors: their code is run as it stands, as the one file that a page names."""

import dataclasses
import importlib
import importlib.util
import pathlib
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import otbr_jax
from otbr_jax import Batch, InputError, attacks, defenses, detectors, plan
from otbr_jax.attacks import poisoning
from otbr_jax.attacks import registry as attack_registry
from otbr_jax.data import sources
from otbr_jax.defenses import registry
from otbr_jax.detectors import registry as detector_registry
from otbr_jax.graph import rules
from otbr_jax.models.registry import network_from_flax
from otbr_jax.studies import repair_config

PAGES = pathlib.Path(__file__).resolve().parent.parent / "docs"


def blocks(page):
    """The Python of a page, in whichever folder of `docs/` it is, block by block."""
    (path,) = (found for found in PAGES.rglob(page) if "_build" not in found.parts)
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def house(tmp_path, monkeypatch):
    """`(package, file name, text)` -> None: puts a file into a package of the library, for this test."""

    def put(package, name, text):
        folder = tmp_path / package.__name__
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        if str(folder) not in package.__path__:
            monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)

    return put


def again(module, monkeypatch):
    """A fresh copy of a module, for this test alone: others keep the classes that they know."""
    spec = importlib.util.spec_from_file_location(module.__name__, module.__file__)
    own = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, own)
    spec.loader.exec_module(own)
    return own


@pytest.fixture
def clean():
    """20 images of the tiny network's shape, two of each class."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    return Batch(images, np.arange(40) % 10)


def test_the_code_of_readme(moved, capsys):
    network, _, variables, _ = moved
    (code,) = re.findall(r"^```python\n(.*?)^```", (PAGES.parent / "README.md").read_text(), re.S | re.M)
    names = {"apply": network.apply, "apply_train": network.apply_train, "variables": variables}
    exec(code, names)
    assert re.fullmatch(r"(yes|no|cannot tell) \d \d+ of \d+ channels pruned\n", capsys.readouterr().out)
    assert jax.tree.structure(names["repaired"]) == jax.tree.structure(variables)


def test_the_code_about_detection(moved, capsys):
    network, _, variables, _ = moved
    (code,) = blocks("detection.md")
    exec(code, {"network": network, "variables": variables})
    assert re.fullmatch(r"(yes|no|cannot tell) \d [\d.]+ ([\d.e-]+|None)\n", capsys.readouterr().out)


def test_a_defence_is_one_file(house, monkeypatch, moved, clean):
    network, _, variables, graph = moved
    pruned, gentle, use, file = blocks("add_a_defence.md")
    for name, text in (("pruned", pruned), ("gentle", gentle)):
        house(defenses, name, text)
    monkeypatch.setattr(registry, "DEFENSES", registry._discover())
    found = otbr_jax.defend("pruned", network, variables, key=jax.random.key(0), graph=graph)
    assert re.fullmatch(r"\d+ of \d+ neurons pruned", found.outcome.done)
    names = {"otbr_jax": otbr_jax, "jax": jax, "network": network, "variables": variables, "clean": clean}
    exec(use, names)
    assert names["found"].outcome.done == "all weights fine-tuned, 10 epochs"
    again(repair_config, monkeypatch)
    config = {}
    exec(file, config)
    assert config["get_config"]().finetuning.epochs == 10
    with pytest.raises(otbr_jax.InputError, match="clean: expected clean images and labels, which 'gentle' needs"):
        otbr_jax.defend("gentle", network, variables, key=jax.random.key(0))


def test_a_detector_is_one_file(house, monkeypatch, moved):
    network, _, variables, _ = moved
    code, use = blocks("add_a_detector.md")
    house(detectors, "noise_answers", code)
    monkeypatch.setattr(detector_registry, "DETECTORS", detector_registry._discover())
    names = {"otbr_jax": otbr_jax, "jax": jax, "network": network, "variables": variables}
    exec(use, names)
    found = names["verdict"]
    np.testing.assert_allclose(sum(found.scores), 1, rtol=1e-6)
    assert found.score == max(found.scores) == found.scores[found.suspect]
    assert found.backdoored == ("yes" if found.score >= 0.9 else "no")


def test_an_attack_is_one_file(house, clean, monkeypatch):
    (code,) = blocks("add_an_attack.md")
    house(attacks, "blinds", code)
    own = again(attack_registry, monkeypatch)
    config = own.AttackConfig(name="blinds", poisoning_ratio=0.25)
    assert config.settings()["strength"] == 0.5
    labels, put = jnp.asarray(clean.labels), own.trigger(config, {})
    images = jnp.asarray(clean.images)
    poisoned = poisoning.poison(images, labels, put, key=jax.random.key(0), config=config, num_classes=10)
    chosen = np.flatnonzero(poisoned.poisoned)
    assert len(chosen) == 10
    assert not np.any(poisoned.labels[chosen])
    for image in chosen:
        rows = np.asarray(clean.images[image], float)
        np.testing.assert_array_equal(poisoned.images[image][1::2], rows[1::2])
        np.testing.assert_array_equal(poisoned.images[image][::2], np.round(rows[::2] * 0.5))


@pytest.fixture
def asked(monkeypatch, moved, clean):
    """What pages about inversion ask: a network that answers several classes; inversions take two steps."""
    monkeypatch.setattr(otbr_jax, "invert", partial(otbr_jax.invert, steps=2, triggers=2, starts=2))
    network, _, variables, _ = moved
    usual = network.answer(variables, clean.images).mean(0)
    network = dataclasses.replace(network, apply=lambda *given: moved[0].apply(*given) - usual)
    return {"otbr_jax": otbr_jax, "network": network, "variables": variables, "images": clean.images}


def test_a_trigger_family_changes_pictures_within_its_budget(asked):
    code, use = blocks("add_a_trigger_family.md")
    names = {}
    exec(code, names)
    family, images = names["ROWS"], jax.random.uniform(jax.random.key(0), (5, 8, 6, 3), minval=0.4, maxval=0.6)
    latent = family.init(jax.random.key(1), images.shape[1:])
    for budget in (0.02, 0.05, 0.1):
        changed = family.apply(images, latent, jnp.asarray(budget))
        assert float(jnp.sqrt(jnp.mean((changed - images) ** 2))) == pytest.approx(budget, rel=1e-3)
        np.testing.assert_allclose(changed - images, (changed - images)[:1, :, :1, :1] + 0 * images, atol=1e-6)
    assert jnp.all(jnp.abs(family.apply(images, latent, 9.0) - 0.5) <= 0.5)
    exec(use, names := names | asked)
    assert names["found"].family is family


def test_a_trigger_is_inverted_in_three_lines(asked, capsys):
    first, *others = blocks("invert_a_trigger.md")
    assert len([line for line in first.splitlines() if "found" in line]) == 3
    exec(first, names := dict(asked))
    assert re.fullmatch(r"0\.\d{3} [01]\.\d\d\n", capsys.readouterr().out)
    assert names["triggered"].shape == asked["images"].shape
    for code in others:
        exec(code, names)
    assert len(names["sizes"]) == 10
    assert float(jnp.mean(names["mask"])) <= float(names["found"].size) * 1.001
    assert float(names["bounded"].size) == pytest.approx(0.05)
    assert names["cleansed"].parameters.mask.shape == (8, 8, 1)
    assert float(names["rate"]) == pytest.approx(float(names["found"].success), abs=0.03)


def test_a_data_set_is_one_function(monkeypatch):
    (code,) = blocks("add_a_data_set.md")
    names = {}
    exec(code, names)
    stored = names["bars"](None, (8, 10, 1))
    for part, size in ((stored.train, 200), (stored.test, 100)):
        found = sources.read_part(part, size, name="bars", image_shape=(8, 10, 1), num_classes=10)
        np.testing.assert_array_equal(np.argmax(found.images.min((1, 3)), -1), found.labels)


def test_a_network_is_one_module():
    (code,) = blocks("add_a_network.md")
    names = {}
    exec(code, names)
    module = names["Plain"](num_classes=3, width=4)
    network = network_from_flax(module, image_shape=(6, 6, 2), num_classes=3)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 6, 6, 2)), train=True)
    graph = otbr_jax.trace(network.apply, variables, jnp.zeros((1, 6, 6, 2)))
    assert [layer.neurons for layer in graph.layers] == [4, 4, 3]
    assert sorted(group.size for group in graph.groups) == [4, 4]


def test_a_tracing_rule_is_one_function(monkeypatch):
    code, use = blocks("add_a_tracing_rule.md")
    names = {}
    exec(code, names)
    monkeypatch.setattr(rules, "_RULES", {**rules._RULES, "sort": names["_sort"]})
    key = jax.random.key(0)
    kernels = {
        name: jax.random.normal(jax.random.fold_in(key, index), shape)
        for index, (name, shape) in enumerate({"conv": (3, 3, 1, 5), "dense": (5, 3)}.items())
    }

    def apply(variables, images, axis=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        found = jax.lax.conv_general_dilated(images, variables["conv"], (1, 1), "SAME", dimension_numbers=numbers)
        positions = jnp.sort(found.reshape(len(images), -1, 5), axis=axis)
        return positions[:, -4:].mean(1) @ variables["dense"]

    images = jax.random.normal(key, (2, 4, 4, 1))
    use_names = {"otbr_jax": otbr_jax, "apply": apply, "variables": kernels, "images": images, "key": key}
    exec(use, use_names)
    assert [group.size for group in use_names["graph"].groups] == [5]
    assert use_names["worst"] < 1e-5
    with pytest.raises(InputError, match="cannot follow a sort of neurons"):
        otbr_jax.trace(lambda variables, images: apply(variables, images, axis=2), kernels, images)


def test_a_study_is_one_value(moved):
    network, _, variables, graph = moved
    (code,) = blocks("add_a_study.md")
    names = {"__name__": "weights"}
    exec(code, names)
    study, config = names["WEIGHTS"], names["WeightsConfig"]()
    assert [one.attack.name for one in study.each(config)] == ["none", "badnets"]
    setup = plan.set_up(network, graph)
    found = plan.run(study.plan(None, {}), setup, {"victim": variables}, key=jax.random.key(0))["norms"]
    assert found.shape == (len(setup.layers),)
    assert bool(jnp.all(found > 0))
    assert study.table(config, []) == "attack  first layer  last layer\n-------------------------------"


def test_a_map_of_ones_own(small, synchronised):
    network, variables, graph = small
    mapped, sharded = blocks("your_own_map.md")
    names = {"network": synchronised, "variables": variables, "graph": graph}
    exec(mapped, names)
    first = names["repaired"]
    names["network"] = network
    exec(sharded, names)
    again = names["repaired"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), first, again)
