"""Detectors: each flags the class of a planted backdoor, in memory as on disk, and rejects bad input in one line."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from launching import launch
from scipy import stats

from otbr_jax import Batch, InputError, Network, detect
from otbr_jax.data.sources import DataConfig
from otbr_jax.detectors.detector import conclude
from otbr_jax.detectors.free_eagle import FreeEagleConfig, anomaly_metrics
from otbr_jax.detectors.mm_bd import MMBDConfig, p_values
from otbr_jax.detectors.neural_cleanse import NeuralCleanseConfig, anomaly_indices, invert_mask
from otbr_jax.detectors.registry import DETECTORS
from otbr_jax.detectors.trigger_size import DetectionConfig, ImagesConfig, TriggerSizeSettings
from otbr_jax.detectors.verdict import in_words, read_verdict
from otbr_jax.graph.cut import cut
from otbr_jax.graph.graph import NeuronGraph
from otbr_jax.inversion import InversionConfig
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.report.detector_tables import curves
from otbr_jax.report.numbers import auc_interval
from otbr_jax.report.results_tables import markdown
from otbr_jax.report.rows import Row
from otbr_jax.runs.run import Run
from otbr_jax.runs.session import open_session
from otbr_jax.settings import change
from otbr_jax.steps.margin import MarginConfig
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.detection import DetectorCell, detected_by
from otbr_jax.studies.inspection import inspect
from otbr_jax.studies.repair_config import repaired_by
from otbr_jax.types import named_leaves

CLASSES, SHAPE = 6, (8, 8, 1)
SMALL = {
    "neural_cleanse": NeuralCleanseConfig(steps=200),
    "free_eagle": FreeEagleConfig(steps=300),
    "mm_bd": MMBDConfig(margin=MarginConfig(steps=60, images=4)),
    "trigger_size": TriggerSizeSettings(
        images=ImagesConfig(made=100, images=40),
        inversion=InversionConfig(steps=12, starts=4, finalists=2, images=20),
        margin=MarginConfig(steps=60, images=4),
        detection=DetectionConfig(families=("patch", "additive")),
    ),
}
BRIEF = {
    "neural_cleanse": NeuralCleanseConfig(steps=3, batch_size=8),
    "free_eagle": FreeEagleConfig(steps=3, dummies=2),
    "mm_bd": MMBDConfig(margin=MarginConfig(steps=2, images=2)),
    "trigger_size": TriggerSizeSettings(
        images=ImagesConfig(made=60, images=40),
        inversion=InversionConfig(steps=2, images=8, starts=4, finalists=2),
        margin=MarginConfig(steps=2, images=2),
        detection=DetectionConfig(families=("patch",)),
    ),
}


@pytest.fixture(scope="module")
def planted():
    """(network, variables, clean images): each class is ten bright pixels, class 1 four in a corner, too."""

    def apply(variables, images):
        params = variables["params"]
        inner = jax.nn.relu(images.reshape(len(images), -1) @ params["inner"] - params["offset"])
        return inner @ params["outer"]

    inner, outer = np.zeros((64, CLASSES + 1), np.float32), np.eye(CLASSES + 1, CLASSES, dtype=np.float32)
    for label in range(CLASSES):
        inner[10 * label : 10 * label + 10, label] = 0.4
    inner[60:, -1] = 0.25
    outer[:-1, 1] += 0.03  # what is a backdoor's shows inside, too
    outer[-1, 1] = 12.0
    offset = np.array([0.0] * CLASSES + [0.45], np.float32)
    variables = {"params": {"inner": jnp.array(inner), "offset": jnp.array(offset), "outer": jnp.array(outer)}}
    images = np.random.default_rng(1).integers(0, 200, (120, *SHAPE), dtype=np.uint8)
    return Network(apply, SHAPE, CLASSES), variables, Batch(images, np.arange(120) % CLASSES)


def clean_for(name, images):
    return None if DETECTORS[name].data == "none" else images


@pytest.mark.parametrize("name", SMALL)
def test_the_class_of_a_planted_backdoor_is_flagged(name, planted):
    network, variables, images = planted
    found = detect(name, network, variables, key=jax.random.key(0), clean=clean_for(name, images), config=SMALL[name])
    assert (found.detector, found.suspect, found.backdoored) == (name, 1, "yes"), found
    assert found.score == max(found.scores) > found.threshold
    assert len(found.scores) == CLASSES
    assert (found.p_value is not None) == (name == "mm_bd")
    assert (found.why_not == "") == (name == "mm_bd")
    assert in_words(found).startswith(f"class 1 is flagged: score {found.score:.2f}, threshold ")
    assert read_verdict(json.loads(json.dumps(found.plain()))) == found._replace(triggers=None)
    if DETECTORS[name].triggers is not None:
        masks, patterns = found.triggers
        assert (masks.shape, patterns.shape) == ((CLASSES, 8, 8, 1), (CLASSES, *SHAPE))


def test_all_detectors_are_found_by_looking():
    assert {*DETECTORS} == {*SMALL}
    for name, detector in DETECTORS.items():
        assert detector.name == name
        needed = {need for step in detector.plan(detector.Config()) for need in step.needs.values()}
        made = {step.name for step in detector.plan(detector.Config())}
        assert needed - made == {"victim"} | ({"clean"} if detector.data == "clean images" else set())


def test_the_masks_are_the_planted_ones(planted):
    network, variables, images = planted
    search = jax.jit(
        lambda key: invert_mask(network, variables, Batch(*images), 1, key=key, config=SMALL["neural_cleanse"])
    )
    found = search(jax.random.key(0))
    assert found.success > 0.9
    mask = np.asarray(found.parameters.mask)[..., 0]
    assert mask[-1, -4:].sum() > 0.9 * mask.sum()
    assert mask.sum() < 4


def test_the_anomaly_index_is_scipys():
    norms = np.random.default_rng(0).uniform(2, 60, 10)
    expected = (np.median(norms) - norms) / stats.median_abs_deviation(norms, scale="normal")
    np.testing.assert_allclose(anomaly_indices(norms), expected, rtol=1e-4)
    assert np.isfinite(anomaly_indices(np.array([1.0, 5, 5, 5, 5]))).all()
    assert anomaly_indices(np.array([1.0, 5, 5, 5, 5])).argmax() == 0
    assert not anomaly_indices(np.zeros(5)).any()


def test_p_values_by_hand():
    margins = np.array([3.0, 4.0, 5.0, 4.5, 9.0])
    rate = 1 / (np.mean([3.0, 4.0, 5.0, 4.5]) - 3.0)
    expected = 1 - (1 - np.exp(-rate * (9.0 - 3.0))) ** 4
    np.testing.assert_allclose(p_values(margins, null="exponential")[4], expected, rtol=1e-6)
    many = np.append(np.random.default_rng(0).gamma(5.0, 2.0, 42), 60.0)
    shape, place, scale = stats.gamma.fit(many[:-1])
    expected = 1 - stats.gamma.cdf(60.0, shape, loc=place, scale=scale) ** 42
    np.testing.assert_allclose(p_values(many)[-1], expected, rtol=1e-4)
    assert np.all(np.diff(p_values(np.sort(many))) <= 0)
    np.testing.assert_array_equal(p_values(np.array([1.0, 1, 1, 2])), [1, 1, 1, 0])


def test_anomaly_metrics_by_hand():
    posteriors = np.eye(5) * 0.9
    posteriors[:, 3] += 0.04
    posteriors[0, 1:3] += [0.004, 0.008]
    attracted = np.array([0, 0.001, 0.002, 0.04, 0])
    low, high = np.percentile(attracted, [25, 75])
    np.testing.assert_allclose(anomaly_metrics(posteriors), (attracted - high) / (high - low), rtol=1e-6)
    assert np.isfinite(anomaly_metrics(np.eye(5))).all()


@pytest.mark.parametrize("name", ["vgg7_bn", "preact_resnet10", "vit_b_16"])
def test_a_network_that_is_cut_computes_the_same(name):
    sizes = {"vit_b_16": {"image_shape": (32, 32, 1), "depth": (2,)}}.get(name, {"image_shape": (8, 8, 1)})
    network, init = registry.build(ModelConfig(name=name, width=8, num_classes=10, **sizes))
    variables = jax.jit(init)(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (4, *network.image_shape))
    expected, kernels = network.apply(variables, images), []
    for share in (0.0, 0.5, 1.0):
        parts = cut(network.apply, variables, jax.ShapeDtypeStruct(images.shape, images.dtype), share=share)
        inner = parts.front(variables, images)
        assert (inner.shape, inner.dtype) == (parts.inner.shape, parts.inner.dtype)
        np.testing.assert_allclose(parts.rest(variables, inner), expected, rtol=1e-4, atol=1e-5)
        kernels.append(parts.before)
    assert kernels[0] == 0 < kernels[1] < kernels[2]


# --- on disk ------------------------------------------------------------------------------------------------------


SLOW = pytest.param("trigger_size", marks=pytest.mark.slow)  # `disarm` has its steps, and tests of its own


@pytest.mark.parametrize("name", [SLOW if name == "trigger_size" else name for name in BRIEF])
def test_memory_and_disk_say_the_same(name, tmp_path):
    config = tiny_runs.OTBR
    session = open_session(config.victim.model, config.victim.data, devices=tiny_runs.DEVICES)
    variables = jax.jit(session.source.init)(jax.random.key(3))
    images = np.random.default_rng(2).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    batch = Batch(images, np.arange(20, dtype=np.int32) % 10)
    with session.directory(tmp_path / "w") as directory:
        run = Run(session, directory, config.victim.seed)
        given = {"victim": variables} | ({} if DETECTORS[name].data == "none" else {"clean": batch})
        run.plan(DETECTORS[name].plan(BRIEF[name]), given)
        again = run.plan(DETECTORS[name].plan(BRIEF[name]), given)
    assert all(stage.resumed for stage in again.values())
    on_disk = conclude(DETECTORS[name], BRIEF[name], {step: stage.value for step, stage in again.items()})
    in_memory = detect(
        name,
        run.network,
        variables,
        key=run.root,
        clean=clean_for(name, batch),
        config=BRIEF[name],
        graph=session.source.graph,
    )
    assert on_disk.plain() == in_memory.plain()


@pytest.fixture(scope="module")
def victim(otbr_run, tmp_path_factory):
    """A folder of a bench in which the tiny victim is trained already, and the cell of its repair."""
    root = tmp_path_factory.mktemp("bench")
    cell = Cell(tiny_runs.OTBR, recipe="tiny")
    shutil.copytree(otbr_run[0], root / cell.group)
    return root, cell


def test_a_cell_says_what_a_detector_says_and_what_is_true(victim):
    root, cell = victim
    cells = [detected_by(name, cell, own=BRIEF[name]) for name in ("neural_cleanse", "mm_bd")]
    assert cells[1].name == "digits/vgg7_bn-w8-d1.1.1.1/tiny/badnets/mm_bd/seed0"
    made = [each.fill(root, devices=tiny_runs.DEVICES) for each in cells]
    for each, row in zip(cells, made, strict=True):
        assert json.loads(json.dumps(row)) == row
        assert (row["attack"], row["target"]) == ("badnets", 0)
        assert row["metrics"]["victim"]["asr"] > 0.9
        assert row["verdict"]["score"] == max(row["verdict"]["scores"])
        assert row["detector_seconds"] >= 0
        assert "of detection" in each.in_words(row)
    assert [row["clean_images"] for row in made] == [65, 0]
    assert ["clean" in row["config"] for row in made] == [True, False]
    assert made[1]["config"]["detector"]["margin"]["steps"] == 2
    # Rows are known by the victim's settings and the detector's; how the victim is repaired does not matter.
    row = made[1] | {"cell": cells[1].name, "versions": {"otbr_jax": "0.1.0"}}
    assert cells[1].matches(row)
    other = Cell(repaired_by("disarm", tiny_runs.OTBR), recipe="tiny")
    assert detected_by("mm_bd", other, own=BRIEF["mm_bd"]).matches(row)
    assert not detected_by("mm_bd", cell).matches(row)
    assert not dataclasses.replace(cells[1], config=change(cell.config, seed=1)).matches(row)
    clean_too = [
        row | {"cell": f"{row['detector']}{attack}", "attack": attack} for attack in ("none", "badnets") for row in made
    ]
    DetectorCell.draw(Bench("g", tuple(cells)), clean_too, root)
    assert (root / "roc.png").stat().st_size > 0


def test_inspecting_by_another_detector(otbr_run, tmp_path):
    workdir, _, _ = otbr_run
    config = change(
        tiny_runs.OTBR,
        model=dataclasses.replace(tiny_runs.OTBR.victim.model, checkpoint=str(workdir / "repaired")),
        data=DataConfig(name="none"),
    )
    said = inspect(config, detect_in=tmp_path / "w", detector="free_eagle").splitlines()[-1]
    assert "scores highest" in said or "is flagged: score" in said
    assert "threshold 2 (free_eagle)" in said
    with pytest.raises(InputError, match=r"^clean.name: expected clean images of your own"):
        inspect(config, detect_in=tmp_path / "w", detector="neural_cleanse")
    with pytest.raises(InputError, match=r"^defense: expected one with a detector, .* or name a --detector"):
        inspect(config, detect_in=tmp_path / "w")
    done = launch("inspect_network", "--detector=mm_bd", folder=tmp_path)
    assert done.stderr == "error: --detector: expected --detect=DIR or --scan=PATH beside it, found 'mm_bd' alone\n"


# --- bad input ----------------------------------------------------------------------------------------------------


def bad(planted, message, name="neural_cleanse", **given):
    network, variables, images = planted
    given = {"clean": images, "graph": NeuronGraph(())} | given
    with pytest.raises(InputError, match=message) as error:
        detect(name, network, variables, key=jax.random.key(0), **given)
    assert "\n" not in str(error.value)


def test_bad_input_is_named(planted):
    _, _, (images, labels) = planted
    bad(planted, r"^detector: expected one of \[.*'neural_cleanse'.*\], found 'strip'$", name="strip")
    bad(planted, "^clean: expected clean images and labels, which 'neural_cleanse' needs, found none$", clean=None)
    bad(planted, "^clean: expected none, since 'mm_bd' takes no images, found 120$", name="mm_bd")
    bad(planted, r"^clean.images: expected uint8 .*float64", clean=Batch(images / 255, labels))
    bad(
        planted,
        r"^clean.images: expected uint8 .*\[n, 8, 8, 1\], found uint8 \[120, 8, 4, 1\]",
        clean=Batch(images[:, :, :4], labels),
    )
    bad(
        planted,
        r"^clean.labels: .* 6 classes, 0 to 5, found none of class 4",
        clean=Batch(images, np.where(labels == 4, 0, labels)),
    )
    bad(planted, "^config: expected NeuralCleanseConfig of 'neural_cleanse', found MMBDConfig$", config=MMBDConfig())
    one = (dataclasses.replace(planted[0], num_classes=1), *planted[1:])
    bad(one, "^network: expected at least 2 classes, found 1$")
    broken = (planted[0], jax.tree.map(lambda leaf: leaf * jnp.nan, planted[1]), planted[2])
    bad(broken, "^variables: expected finite weights, found")
    assert named_leaves(planted[1])
    with pytest.raises(InputError, match=r"^own: expected a MMBDConfig, found a NeuralCleanseConfig$"):
        detected_by("mm_bd", Cell(tiny_runs.OTBR), own=NeuralCleanseConfig())


# --- the table ----------------------------------------------------------------------------------------------------


def scored(detector, attack, seed, score, **fields):
    row = {
        "cell": f"{attack}/{detector}/{seed}",
        "dataset": "digits",
        "network": "a-w8",
        "recipe": "fast",
        "variant": "",
    }
    row |= {"attack": attack, "seed": seed, "detector": detector, "needs": DETECTORS[detector].data}
    row |= {"target": None if attack == "none" else 0, "detector_seconds": 3.0}
    row["verdict"] = {"suspect": 0, "backdoored": "yes" if score > 2 else "no", "score": score}
    row["metrics"] = {"victim": {"acc": 0.9, "asr": None if attack == "none" else 1.0}}
    return row | fields


def rows(values):
    return [Row(str(index), value) for index, value in enumerate(values, start=1)]


def test_the_table_to_the_letter():
    values = [scored("mm_bd", "badnets", seed, score) for seed, score in enumerate((3.0, 9.0, 1.0))]
    values += [scored("mm_bd", "none", seed, score, detector_seconds=5.0) for seed, score in enumerate((0.5, 2.5))]
    values[1]["verdict"]["suspect"] = 4
    weak = scored("mm_bd", "wanet", 0, 0.1)
    weak["metrics"]["victim"]["asr"] = 0.05
    values += [weak, scored("neural_cleanse", "badnets", 0, 8.0), scored("neural_cleanse", "badnets", 0, 9.0)]
    head, _, first, second, _, *notes = markdown("bench_detectors", rows(values)).splitlines()
    assert head.startswith("| detector | needs | backdoored + clean | AUC | detected at its threshold |")
    low, high = auc_interval(5 / 6, 3, 2)
    assert first == (
        f"| mm_bd | none | 3 + 2 | 0.833 ({100 * low:.0f} to {100 * high:.0f} %) | 2 of 3 (21 to 94 %) | "
        "1 of 3 (6 to 79 %) | 1 of 2 (9 to 91 %) | 3 |"
    )
    assert (
        second
        == "| neural_cleanse | clean images | 1 + 0 | - | 1 of 1 (21 to 100 %) | 1 of 1 (21 to 100 %) | 0 of 0 | 3 |"
    )
    assert "1 victims did not learn the attack" in " ".join(notes)
    assert [*curves(rows(values))] == ["mm_bd"]


def test_an_interval_of_an_auc_holds_it_and_narrows():
    for auc in (0.5, 0.8, 1.0):
        low, high = auc_interval(auc, 12, 10)
        assert 0 <= low <= auc <= high <= 1
        assert high - low > 0.05
        closer = auc_interval(auc, 120, 100)
        assert low < closer[0] <= closer[1] <= high
    low, high = auc_interval(0.5, 12, 10)
    np.testing.assert_allclose(low, 1 - high, atol=1e-9)
    # Newcombe's equation, solved: its ends are as far away as the deviation there says.
    low, _ = auc_interval(0.9, 12, 10)
    variance = low * (1 - low) * (1 + 10 * ((1 - low) / (2 - low) + low / (1 + low))) / 120
    np.testing.assert_allclose(0.9 - low, 1.959964 * variance**0.5, rtol=1e-9)
