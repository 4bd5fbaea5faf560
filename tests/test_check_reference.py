"""`launch.check_reference`: every stage of OTBR and TSBD against numbers that another implementation computed.

On a file that PyTorch writes here (skipped without PyTorch), and on one that is named (`OTBR_JAX_REFERENCE=FILE.npz`).
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from otbr_jax import InputError
from otbr_jax.experiments.comparing import compare, compare_each
from otbr_jax.experiments.reference_otbr import check_otbr
from otbr_jax.experiments.reference_tsbd import check_tsbd
from otbr_jax.experiments.references import load_reference

FILE = pathlib.Path(os.environ.get("OTBR_JAX_REFERENCE", ""))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("torch", reason="PyTorch writes the reference")
    from torch_reference import write_reference

    path = tmp_path_factory.mktemp("reference") / "vgg.npz"
    write_reference(path)
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
    found = {c.name: c.passed for c in check_otbr(load_reference(changed(written, tmp_path, **arrays)))}
    failed = {name for name, passed in found.items() if not passed}
    assert {*wrong.values(), "pruned_0.05/neurons"} <= failed
    # What is computed from the changed unlearned tensor and kernel may fail with them, nothing else.
    assert failed - {*wrong.values(), "pruned_0.05/neurons", "unlearned"} <= {
        name for name in found if "ties_before/body.18" in name
    }
    assert "fused_0.05/logits" not in found  # another set of neurons, another network


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
    assert all(found[name].tolerance < 0.2 for name in stages)


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
        command = [sys.executable, "-m", "launch.check_reference", f"--reference={path}", "--method=otbr"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

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


def test_a_nan_never_passes():
    assert not compare("x", np.array([np.nan]), np.array([1.0]), tolerance=1.0).passed
    assert not compare_each("x", np.array([1.0]), np.array([np.nan]), tolerance=1.0).passed
    assert compare("zeros", np.zeros(3), np.zeros(3), tolerance=0.0).passed
    assert compare_each("zeros", np.zeros(3), np.zeros(3), tolerance=0.0).passed


@pytest.mark.slow
@pytest.mark.skipif(not FILE.is_file(), reason="OTBR_JAX_REFERENCE names no reference file")
@pytest.mark.parametrize("check", [check_otbr, check_tsbd])
def test_every_stage_equals_the_reference_implementations(check):
    comparisons = list(check(load_reference(FILE)))
    assert len(comparisons) > 20
    assert [comparison for comparison in comparisons if not comparison.passed] == []
