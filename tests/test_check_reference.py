"""`launch.check_reference`: every stage of OTBR and TSBD against numbers that another implementation computed.

On a file that PyTorch writes here (skipped without PyTorch), and on one that is named (`OTBR_JAX_REFERENCE=FILE.npz`).
"""

import dataclasses
import itertools
import json
import os
import pathlib

import numpy as np
import pytest
from launching import launch

from otbr_jax import InputError
from otbr_jax.steps import transport
from otbr_jax.studies import reference_otbr
from otbr_jax.studies.comparison import (
    MOST,
    STARTS,
    compare,
    compare_choice,
    compare_neurons,
    nearly_equal_starts,
    worst_of,
)
from otbr_jax.studies.reference_otbr import check_otbr
from otbr_jax.studies.reference_tsbd import check_tsbd
from otbr_jax.studies.references import load_reference
from otbr_jax.types import split

FILE = pathlib.Path(os.environ.get("OTBR_JAX_REFERENCE", ""))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("torch", reason="PyTorch writes the reference")
    from torch_reference import write_reference

    path = tmp_path_factory.mktemp("reference") / "vgg.npz"
    write_reference(path)
    return path


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """The VGG with biases that BatchNorm takes away again: their gradient is zero but for rounding."""
    pytest.importorskip("torch", reason="PyTorch writes the reference")
    from torch_reference import write_reference

    path = tmp_path_factory.mktemp("reference") / "biased.npz"
    write_reference(path, bias=True)
    return path


def changed(path, tmp_path, **arrays):
    """The file with some arrays replaced, or left out where they are None."""
    with np.load(path) as file:
        kept = {name: file[name] for name in file.files} | arrays
    np.savez(tmp_path / "changed.npz", **{name: array for name, array in kept.items() if array is not None})
    return tmp_path / "changed.npz"


def test_every_stage_equals_pytorchs(written):
    found = {comparison.name: comparison for comparison in check_otbr(load_reference(written))}
    assert [name for name, comparison in found.items() if not comparison.passed] == []
    for name in ("victim_logits", "unlearned_logits", "nwc/body.0.weight", "pruned_0.3/neurons", "fused_0.3/logits"):
        assert name in found
    # Ties were met, so that this is not equality by chance.
    assert any("ties_before" in name for name in found)
    assert found["fused_0.3/body.18.weight"].max_rel < 1e-4


def test_other_numbers_fail_and_only_these(written, tmp_path):
    wrong = {
        "victim_logits": "victim_logits",
        "otbr/unlearned/body.0.weight": "unlearned_change",
        "otbr/nwc/body.15.weight": "nwc/body.15.weight",
        "otbr/fused_0.3/body.18.weight": "fused_0.3/body.18.weight",
        "otbr/fused_0.3/logits": "fused_0.3/logits",
    }
    with np.load(written) as file:
        arrays = {name: file[name].copy() for name in wrong}
    for array in arrays.values():
        array.flat[0] += 0.1 * np.abs(array).max()
    arrays["otbr/pruned_0.05/neurons"] = np.array(["body.0.weight:1"])
    others = {"pruned_0.05/count", "pruned_0.05/neurons"}
    found = {c.name: c.passed for c in check_otbr(load_reference(changed(written, tmp_path, **arrays)))}
    failed = {name for name, passed in found.items() if not passed}
    assert {*wrong.values(), *others} <= failed
    # What is computed from the changed unlearned tensor and kernel may fail with them, nothing else.
    assert failed - {*wrong.values(), *others, "unlearned"} <= {name for name in found if "ties_before/body.18" in name}
    assert "fused_0.05/logits" not in found  # another set of neurons, another network


@pytest.mark.slow
def test_every_stage_of_tsbd_equals_pytorchs(written):
    reference = load_reference(written)
    found = {comparison.name: comparison for comparison in check_tsbd(reference)}
    assert [comparison for comparison in found.values() if not comparison.passed] == []
    layers = reference.setting("conv_layers")
    stages = ["reinit_logits", "finetuned_parameters", "finetuned_statistics", "finetuned_logits"]
    assert list(found) == ["victim_logits", *(f"nwc/{name}" for name in layers), "zeroed_0.25_0.7", *stages]
    # Neither all weights nor none: the threshold was met.
    zeroed = np.concatenate([reference.array(f"tsbd/zeroed_0.25_0.7/{name}").ravel() for name in layers])
    assert 0.05 < zeroed.mean() < 0.4
    # Rounding is not what makes them pass.
    assert all(found[name].tolerance <= 0.02 for name in stages)


def test_other_numbers_of_tsbd_fail_and_only_these(written, tmp_path):
    with np.load(written) as file:
        nwc, kernel = file["tsbd/nwc/body.11.weight"].copy(), file["tsbd/finetuned/body.15.weight"]
        mask = file["tsbd/zeroed_0.25_0.7/body.11.weight"].copy()
        mean = file["tsbd/finetuned/body.16.running_mean"]
    mask[nwc.argmin(), 0, 0, 0] ^= True  # of a neuron that hardly changed
    nwc[3] *= 1.1
    wrong = {
        "tsbd/nwc/body.11.weight": nwc,
        "tsbd/finetuned/body.15.weight": 1.3 * kernel,
        "tsbd/finetuned/body.16.running_mean": 1.3 * mean,
    }
    found = {c.name: c.passed for c in check_tsbd(load_reference(changed(written, tmp_path, **wrong)))}
    failed = [name for name, passed in found.items() if not passed]
    assert failed == ["nwc/body.11.weight", "finetuned_parameters", "finetuned_statistics"]

    flipped = {"tsbd/zeroed_0.25_0.7/body.11.weight": mask}
    found = {c.name: c for c in check_tsbd(load_reference(changed(written, tmp_path, **flipped)))}
    assert [name for name, comparison in found.items() if not comparison.passed] == ["zeroed_0.25_0.7"]
    assert found["zeroed_0.25_0.7"].max_abs == 1
    assert "reinit_logits" not in found  # other weights, another network


@pytest.mark.parametrize(
    "name",
    [
        "tsbd/images",
        "tsbd/nwc/body.4.weight",
        "tsbd/zeroed_0.25_0.7/body.4.weight",
        "tsbd/finetuned/body.5.bias",
    ],
)
def test_what_tsbd_lacks_is_named(written, name):
    reference = load_reference(written)
    lacking = reference._replace(arrays={other: array for other, array in reference.arrays.items() if other != name})
    with pytest.raises(InputError, match=f"--reference: expected an array '{name}' in the file, found none"):
        list(check_tsbd(lacking))


def test_settings_that_tsbd_lacks_are_named(written):
    reference = load_reference(written)
    lacking = reference._replace(meta={name: value for name, value in reference.meta.items() if name != "tsbd"})
    with pytest.raises(InputError, match="--reference: expected meta to hold 'tsbd.n', found none"):
        list(check_tsbd(lacking))


@pytest.mark.slow
def test_the_command(written, tmp_path):
    def run(path):
        return launch("check_reference", f"--reference={path}", "--method=otbr")

    with np.load(written) as file:
        repairs = {name: None for name in file.files if "pruned_0.3" in name or "fused_0.3" in name}
        wrong = changed(written, tmp_path, victim_logits=file["victim_logits"] + 1, **repairs)
    bad = run(wrong)
    lines = [json.loads(line) for line in bad.stdout.splitlines()]
    assert all({"name", "max_abs", "max_rel", "tolerance", "pass"} <= set(line) for line in lines), bad.stderr
    assert [line["name"] for line in lines if not line["pass"]] == ["victim_logits"]
    assert bad.returncode == 1
    none = run(tmp_path / "nix.npz")
    assert (none.returncode, none.stdout) == (2, "")
    assert none.stderr == f"error: --reference: expected an .npz file, found nothing at '{tmp_path}/nix.npz'\n"


def test_bad_files(written, tmp_path):
    def refuse(message, path):
        with pytest.raises(InputError, match=message):
            list(check_otbr(load_reference(path)))

    with np.load(written) as file:
        meta, kernel, layers = json.loads(str(file["meta"])), file["victim/body.0.weight"], "body.0.weight"
    (tmp_path / "text.npz").write_text("no zip")
    refuse("--reference: expected an .npz file of reference numbers, found .*text.npz", tmp_path / "text.npz")
    refuse(r"numbers, found .* \(KeyError: 'meta'\)", changed(written, tmp_path, meta=None))
    other = json.dumps(meta | {"arch": "nix"})
    refuse("model.name: expected one of .*, found 'nix'", changed(written, tmp_path, meta=other))
    wide = json.dumps(meta | {"width": 8})
    refuse(r"expected victim/body.0.weight of shape \(8, 1, 3, 3\), found \(4,", changed(written, tmp_path, meta=wide))
    refuse("expected 6 convolutions, 1 dense", changed(written, tmp_path, **{f"victim/{layers}": kernel[:, 0, 0, 0]}))
    refuse("expected an array 'otbr/noise' in the file", changed(written, tmp_path, **{"otbr/noise": None}))
    short = json.dumps(meta | {"otbr": {"lr": 0.1}})
    refuse("expected meta to hold 'otbr.momentum', found none", changed(written, tmp_path, meta=short))
    swapped = json.dumps(meta | {"conv_layers": meta["conv_layers"][::-1]})
    refuse("expected meta's conv_layers to be", changed(written, tmp_path, meta=swapped))


def unlearning_of(path):
    """The comparisons up to unlearning: logits, weights, changes, logits."""
    return {c.name: c for c in itertools.islice(check_otbr(load_reference(path)), 4)}


@pytest.mark.slow
def test_what_is_zero_but_for_rounding_is_compared_with_what_moves(biased, tmp_path):
    assert [c for c in unlearning_of(biased).values() if not c.passed] == []
    bias = "body.11.bias"
    with np.load(biased) as file:
        before, after = file[f"victim/{bias}"], file[f"otbr/unlearned/{bias}"]
    assert np.abs(after - before).max() < 1e-7  # relative to itself nothing but noise
    moved = {f"otbr/unlearned/{bias}": after + np.float32(1e-7)}
    found = unlearning_of(changed(biased, tmp_path, **moved))
    assert [name for name, comparison in found.items() if not comparison.passed] == ["unlearned_change"]
    assert bias in found["unlearned_change"].note


def with_settings(reference, method, **settings):
    return reference._replace(meta=reference.meta | {method: reference.meta[method] | settings})


def with_still_statistics(reference):
    network = reference.network
    still = dataclasses.replace(network, apply_train=lambda v, x: (network.apply_train(v, x)[0], split(v)[1]))
    return reference._replace(network=still)


def first_failure(comparisons):
    return next((comparison.name.partition("/")[0] for comparison in comparisons if not comparison.passed), None)


# How small an error is still caught, on a file whose own settings are the left ones.
@pytest.mark.parametrize(
    ("settings", "stage"),
    [
        ({"lr": 1.003e-3}, "unlearned"),  # 0.001
        ({"momentum": 0.897}, "unlearned"),  # 0.9
        ({"lambda": 0.505}, "fused_0.05"),  # 0.5
    ],
)
def test_small_errors_of_otbr_fail(written, settings, stage):
    assert first_failure(check_otbr(with_settings(load_reference(written), "otbr", **settings))) == stage


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "stage"),
    [
        ({"m": 0.71}, "zeroed_0.25_0.71"),  # 0.7
        ({"lr": 0.0101}, "finetuned_parameters"),  # 0.01
        ({"momentum": 0.89}, "finetuned_parameters"),  # 0.9
        ({"alpha": 0.75}, "finetuned_statistics"),  # 0.7
        ({"r": 0.055}, "finetuned_parameters"),  # 0.05
    ],
)
def test_small_errors_of_tsbd_fail(written, settings, stage):
    reference = with_settings(load_reference(written), "tsbd", **settings)
    masks = {
        name.replace("_0.7/", f"_{reference.meta['tsbd']['m']}/"): array for name, array in reference.arrays.items()
    }
    assert first_failure(check_tsbd(reference._replace(arrays=masks))) == stage


def test_statistics_that_stay_fail(written):
    reference = with_still_statistics(load_reference(written))
    assert first_failure(itertools.islice(check_otbr(reference), 3)) == "unlearned"


def test_another_rounding_of_gamma_fails(written, monkeypatch):
    monkeypatch.setattr(reference_otbr, "neurons_to_prune", lambda gamma, total: int(np.ceil(gamma * total)))
    assert first_failure(check_otbr(load_reference(written))) == "pruned_0.05"


def test_a_barycentric_map_by_rows_fails(written, monkeypatch):
    monkeypatch.setattr(transport, "barycentric_map", lambda plan: plan / plan.sum(1, keepdims=True))
    assert first_failure(check_otbr(load_reference(written))) == "fused_0.05"


def test_a_tolerance_is_what_changed_starts_make_of_it():
    expected = np.array([1.0, -2.0])
    near = [expected + 0.02 * np.eye(2)[i % 2] for i in range(STARTS)]
    for error, passed in ((0.07, True), (0.09, False)):
        found = compare("x", [expected + error, *(one + error for one in near)], expected, least=1e-3)
        assert (found.tolerance, found.passed) == (pytest.approx(0.04), passed)
    assert "4 times the change by a start perturbed by 1e-07 (0.01, the largest of 4)" in found.note
    steady = compare("x", [1.002 * expected] * (1 + STARTS), expected, least=1e-3)
    assert (steady.tolerance, steady.passed) == (1e-3, False)  # an error that all starts share is none of rounding
    wild = compare("x", [0 * expected, 9 * expected], expected, least=1e-3)
    assert (wild.tolerance, wild.passed) == (MOST, False)


def test_starts_differ_by_rounding_only():
    tree = {"params": {"a": np.array([0.0, 1.0, 1e3], np.float32)}, "batch_stats": {"b": np.ones(2, np.float32)}}
    first, *others = nearly_equal_starts(tree)
    assert first is tree
    assert len(others) == STARTS
    for other in others:
        np.testing.assert_allclose(other["params"]["a"], tree["params"]["a"], rtol=1e-6, atol=0)
        np.testing.assert_array_equal(other["batch_stats"]["b"], 1.0)
    assert any((other["params"]["a"] != tree["params"]["a"]).any() for other in others)


def test_a_choice_is_exact_but_for_what_rounding_decides():
    values = np.array([5.0, 3.0, 2.9999, 2.9, 1.0])
    ours = values >= 3

    def choose(*expected, own=0.0):
        found = compare_choice(
            "x", ours, np.array(expected, bool), [values, values + own], least=1e-3, things="neurons"
        )
        return found.passed, found.max_abs

    assert choose(1, 1, 0, 0, 0) == (True, 0)
    assert choose(1, 0, 1, 0, 0) == (True, 0)  # nearer than 1e-3 of 3
    assert choose(1, 0, 0, 1, 0) == (False, 1)
    assert choose(1, 0, 0, 1, 0, own=0.03) == (True, 0)  # changed starts move it by a third of how far it is
    assert choose(0, 1, 0, 0, 1, own=0.03) == (False, 2)


def test_a_nan_never_passes():
    nan, one = np.array([np.nan]), np.array([1.0])
    bad = compare("x", [nan], one, least=0.5)
    assert not bad.passed
    assert not compare("x", [np.array([np.inf]), one], one, least=0.5).passed
    assert not compare_neurons("x", [one], nan, least=0.5).passed
    assert worst_of("all", [compare("y", [2 * one], one, least=1.0), bad]).max_rel != 1
    assert compare("zeros", [np.zeros(3)], np.zeros(3), least=0.0).passed
    assert compare_neurons("zeros", [np.zeros(3)], np.zeros(3), least=0.0).passed


@pytest.mark.slow
@pytest.mark.skipif(not FILE.is_file(), reason="OTBR_JAX_REFERENCE names no reference file")
@pytest.mark.parametrize("check", [check_otbr, check_tsbd])
@pytest.mark.slow
def test_every_stage_equals_the_reference_implementations(check):
    comparisons = list(check(load_reference(FILE)))
    assert len(comparisons) > 20
    assert [comparison for comparison in comparisons if not comparison.passed] == []
