"""Relearning of the backdoor; repetitions of a defence; the memory of stages. One tiny victim for all."""

import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import OTBR, TSBD, digests, resumed, run

from otbr_jax import InputError
from otbr_jax.contrib.otbr_plus import SweepConfig
from otbr_jax.data.clean import load_clean
from otbr_jax.data.sources import Images
from otbr_jax.plan import LongStep, Setup, Step, named_key, needs
from otbr_jax.plan import run as plan_run
from otbr_jax.report.rows import parse
from otbr_jax.runs.memory import largest, megabytes
from otbr_jax.runs.run import Run
from otbr_jax.runs.session import open_session
from otbr_jax.settings import change, from_dict
from otbr_jax.studies.bench import Cell, make_row
from otbr_jax.studies.repair_config import RepairConfig, plain_config
from otbr_jax.studies.results import summarize
from otbr_jax.types import Batch, Network
from otbr_jax.victims import evaluation, relearning
from otbr_jax.victims.relearning import RelearningConfig
from otbr_jax.victims.victims import Victim

PLAIN = change(OTBR, sweep=SweepConfig(gamma=()))
MEASURED = change(PLAIN, relearning=RelearningConfig(images=20, poisoned=4, epochs=3, batch_size=10, measure_every=2))
REPAIR = {"unlearned", "scores", "pruned", "fused"}
STAGES = {"victim", *REPAIR, "evaluation"}


def copy(workdir, tmp_path):
    return shutil.copytree(workdir, tmp_path / "w")


def row_of(result, **cell):
    """The row, as a file of results gives it back."""
    (row,) = parse(json.dumps(make_row(Cell(result.config, **cell), result, None)), name="rows")
    return row.values


@pytest.fixture(scope="module")
def measured_run(otbr_run, tmp_path_factory):
    """A run that measures relearning, on the shared victim: (working directory, result)."""
    workdir = shutil.copytree(otbr_run[0], tmp_path_factory.mktemp("asked") / "w")
    return workdir, run(workdir, MEASURED)


def test_a_row_says_whether_the_backdoor_is_relearned(measured_run):
    _, result = measured_run
    curves_of_row = row_of(result)["relearning"]
    assert curves_of_row["epochs"] == [0, 2, 3]
    for curves in (curves_of_row, curves_of_row["never"]):
        for kind in ("clean", "poisoned"):
            for name in ("acc", "asr"):
                assert len(curves[kind][name]) == 3
                assert all(0 <= value <= 1 for value in curves[kind][name])
        assert curves["clean"]["asr"][0] == curves["poisoned"]["asr"][0]  # nothing was done yet
    measured = summarize(result)["metrics"]["fused"]
    assert (curves_of_row["clean"]["acc"][0], curves_of_row["clean"]["asr"][0]) == (measured["acc"], measured["asr"])
    assert curves_of_row["never"]["clean"]["acc"][0] > 0.9
    assert curves_of_row["never"]["clean"]["asr"][0] < 0.1
    assert curves_of_row["poisoned"]["asr"] != curves_of_row["clean"]["asr"]


def test_it_changes_no_stage_and_is_reloaded(otbr_run, measured_run, tmp_path):
    workdir, result = measured_run
    assert set(result.stages) == STAGES | {"clean", "relearning", "relearning_never"}
    assert resumed(result) == STAGES - {"evaluation"}  # whose grid is another
    plain = run(copy(workdir, tmp_path), PLAIN)
    assert resumed(plain) == set(plain.stages) == STAGES
    assert digests(plain).items() <= digests(result).items()
    assert row_of(plain)["relearning"] is None
    assert {name: digests(otbr_run[1])[name] for name in REPAIR} == {name: digests(result)[name] for name in REPAIR}
    again = run(tmp_path / "w", MEASURED)
    assert resumed(again) == set(result.stages)
    before, after = row_of(result), row_of(again)
    assert after["relearning"] == before["relearning"]
    assert after["stage_megabytes"] == before["stage_megabytes"]


def test_the_clean_network_is_the_victim_of_no_attack(measured_run):
    clean, victim = (measured_run[1].stages[name].provenance for name in ("clean", "victim"))
    same = {"name", "key", "parents"}  # the code is that of the attack too
    assert {name: clean[name] for name in same} == {name: victim[name] for name in same}
    assert clean["config"] == victim["config"] | {"attack": {"name": "none"}}


def test_a_network_without_a_trigger_is_not_measured(measured_run):
    session = types.SimpleNamespace(dataset=measured_run[1].dataset)
    without = Victim({}, MEASURED.victim.attack, None)
    assert not relearning.measure_relearning(
        types.SimpleNamespace(session=session), without, {}, None, MEASURED.relearning, recipe=MEASURED.victim.training
    )


def test_every_step_says_how_much_memory_it_takes(measured_run):
    row = row_of(measured_run[1])
    assert set(row["stage_megabytes"]) == set(row["stage_seconds"])
    for name, value in row["stage_megabytes"].items():
        assert value is None if name in ("victim", "clean") else value > 0


def test_a_long_step_says_it_too_and_nothing_is_compiled_twice(tmp_path):
    step = LongStep(
        "grown",
        lambda setup, settings, state: {"sum": state["x"].sum()},
        needs("x"),
        init=lambda setup, settings, *, key, x: {"x": x, "round": jnp.int32(0)},
        body=lambda setup, settings, state, *, key, x: (
            {"x": jnp.sin(state["x"]) @ x, "round": state["round"] + 1},
            {},
        ),
        done=lambda setup, settings, state: state["round"] >= 4,
        count=lambda state: state["round"],
    )
    once = Step("turned", lambda setup, settings, *, key, report, x: {"x": x @ x}, needs("x"))
    compiled, given = [], {"x": np.eye(64, dtype=np.float32)}

    def heard(event, seconds, **more):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(more.get("fun_name"))

    session = open_session(PLAIN.victim.model, PLAIN.victim.data, devices=jax.local_devices()[:1])
    with session.directory(tmp_path / "w") as directory:
        own = Run(session, directory, PLAIN.victim.seed)
        own.setup_digest  # noqa: B018  compiles what it needs
        own.plan((dataclasses.replace(step, name="warm"), dataclasses.replace(once, name="warm once")), given)
        jax.monitoring.register_event_duration_secs_listener(heard)
        try:
            stages = own.plan((step, once), given)
        finally:
            jax.monitoring.unregister_event_duration_listener(heard)
        again = own.plan((step, once), given)
    assert len(compiled) <= 4  # the start, a round, the end; and the other step
    size = 64 * 64 * 4 / 1e6
    assert stages["turned"].megabytes >= 2 * size
    assert stages["grown"].megabytes >= 3 * size  # a round's: two arguments and what it makes
    assert [again[name].megabytes for name in stages] == [stages[name].megabytes for name in stages]
    assert all(stage.resumed for stage in again.values())


def test_a_backend_that_does_not_say():
    class Silent:
        def memory_analysis(self):
            raise NotImplementedError

    assert megabytes(Silent()) is None
    assert megabytes(object()) is None
    assert largest([1.0, None]) is None
    assert largest([1.0, 3.0]) == 3.0


def test_another_repetition_shares_the_victim_alone(otbr_run, measured_run, tmp_path):
    workdir, first = measured_run
    second = run(copy(workdir, tmp_path), change(MEASURED, repetition=1))
    assert resumed(second) == {"victim", "clean", "relearning_never"}
    assert digests(second)["victim"] == digests(first)["victim"]
    for name in ("unlearned", "fused"):
        assert digests(second)[name] != digests(first)[name]
    key = named_key(jax.random.fold_in(jax.random.key(0), 1), "unlearned")
    assert second.stages["unlearned"].provenance["key"] == np.asarray(jax.random.key_data(key)).tolist()
    again = run(tmp_path / "w", MEASURED)  # the other's are still there
    assert resumed(again) == set(first.stages)
    assert digests(again) == digests(first)


def test_another_repetition_draws_other_clean_images(otbr_run):
    dataset = otbr_run[1].dataset
    seeds = [change(TSBD, seed=seed, repetition=r).clean_seed for seed, r in ((0, 0), (3, 0), (0, 1), (0, 2))]
    assert seeds[:2] == [0, 3]
    assert len({*seeds}) == 4
    drawn = [
        load_clean(TSBD.clean, dataset, image_shape=(8, 8, 1), num_classes=10, seed=seed).images.images
        for seed in (seeds[0], seeds[2])
    ]
    assert drawn[0].shape == drawn[1].shape
    assert (drawn[0] != drawn[1]).any()


def test_rows_and_cells_of_repetitions():
    cell = Cell(PLAIN, recipe="fast")
    second = Cell(change(PLAIN, repetition=2), recipe="fast")
    assert cell.name.endswith("/fast/badnets/otbr/seed0")
    assert second.name == f"{cell.name}/run2"
    config = plain_config(PLAIN)
    before = {name: value for name, value in config.items() if name not in ("repetition", "relearning")}
    row = {"cell": cell.name, "versions": {"otbr_jax": "0.1.0"}, "config": before}
    assert cell.matches(row)  # from before there were such settings
    assert not Cell(MEASURED, recipe="fast").matches(row)
    assert not second.matches(row | {"cell": second.name})
    assert from_dict(RepairConfig, {"repetition": 2}).repetition == 2


def test_which_images_are_drawn():
    labels = np.repeat(np.arange(4), 25)
    goals, none = np.zeros(100, int), np.zeros(100, bool)
    config = RelearningConfig(images=12, poisoned=3, batch_size=4)
    places = relearning.draw(labels, goals, config, last=none, seed=0)
    assert len({*places}) == 12
    assert np.bincount(labels[places]).tolist() == [3, 3, 3, 3]
    assert (labels[places[:9]] != 0).all()  # those that are to be poisoned come first
    assert places.tolist() == relearning.draw(labels, goals, config, last=none, seed=0).tolist()
    assert places.tolist() != relearning.draw(labels, goals, config, last=none, seed=1).tolist()
    taken = none.copy()
    taken[places] = True
    others = relearning.draw(labels, goals, config, last=taken, seed=0)
    assert not {*others} & {*places}
    all_but_ten = ~none
    all_but_ten[:10] = False
    assert {*range(10)} < {*relearning.draw(labels, goals, config, last=all_but_ten, seed=0).tolist()}


def test_batches_are_clean_and_partly_poisoned(otbr_run, tmp_path):
    train, config = otbr_run[1].dataset.train, MEASURED.relearning
    clean_images = Images(train.images[:600], train.labels[:600])

    def trigger(images, key):
        return images.at[:, 0].set(255)

    session = open_session(MEASURED.victim.model, MEASURED.victim.data, devices=jax.local_devices()[:1])
    with session.directory(tmp_path / "w") as directory:
        own, victim = Run(session, directory, MEASURED.victim.seed), Victim({}, MEASURED.victim.attack, trigger)
        (clean, poisoned), (labels, changed) = relearning._batches(own, train, victim, config, clean_images)
    assert clean.shape == (20, 8, 8, 1)
    known = {image.tobytes() for image in clean_images.images}
    assert not any(image.tobytes() in known for image in np.asarray(clean))
    assert (poisoned[:4, 0] == 255).all()
    assert (poisoned[4:] == clean[4:]).all()
    assert (changed[:4] == 0).all()
    assert (labels[:4] != 0).all()
    assert (changed[4:] == labels[4:]).all()


def test_nan_weights_have_no_predictions():
    network = Network(lambda variables, images: 1e3 * images.mean((1, 2)) @ variables["params"]["kernel"], (4, 4, 3), 5)
    images = jax.random.uniform(jax.random.key(0), (12, 4, 4, 3))
    labels = jnp.arange(12) % 5
    config = RelearningConfig(images=12, poisoned=1, epochs=2, batch_size=6, learning_rate=1e38)
    given = {
        "network": {"params": {"kernel": jnp.ones((3, 5))}},
        "batches": Batch(jnp.stack([images, images]), jnp.stack([labels, labels])),
        "test": evaluation.TestSet(images, images, labels, jnp.zeros_like(labels)),
    }
    step = relearning._step("relearning", config)
    measurements = plan_run((step,), Setup(network, None, ()), given, key=jax.random.key(0))["relearning"]
    plain = relearning._plain(jax.tree.map(np.asarray, measurements))
    assert plain["clean"]["asr"][0] == 1
    assert plain["clean"]["asr"][-1] is plain["poisoned"]["acc"][-1] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": 3}, r"relearning.poisoned: expected at most relearning.images \(3\), found 5"),
        ({"images": 8}, r"relearning.batch_size: expected at most relearning.images \(8\), found 10"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(InputError, match=message):
        RelearningConfig(**values)


def test_more_images_than_there_are(tmp_path):
    with pytest.raises(InputError, match="relearning.images: expected at most 1297, as many as there are training"):
        run(tmp_path / "w", change(PLAIN, relearning=RelearningConfig(images=1298)))
    with pytest.raises(InputError, match="relearning.batch_size: .* 8 devices, such as 8 or 16, found 10"):
        run(tmp_path / "w", MEASURED, devices=8)
