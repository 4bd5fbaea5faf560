"""Bad inputs, given to the command lines: each has to end in one line, with status 2, and leave nothing.

    python -m benchmarks.bad_inputs

Each is a process of its own, forked from one that has imported what all need. Appends a row to results/faults.jsonl.
"""

import json
import os
import pathlib
import runpy
import shutil
import sys
import tempfile
from collections.abc import Iterator

import jax  # noqa: F401, before the forks
import numpy as np

import otbr_jax  # noqa: F401
from otbr_jax.runs.provenance import ROOT, provenance

SMALL = ("--config.model.name=preact_resnet10", "--config.model.width=2", "--config.model.image_shape=(8, 8, 3)")
OWN = "--config=configs/own_network.py"

Case = tuple[str, list[str]]


def settings() -> Iterator[Case]:
    """Flags and settings that are wrong."""
    for flag in (
        "--nonsense", "--config.sede=1", "--epochs=1", "--config.training.epochs=abc", "--config.training.epochs=0",
        "--config.training.epochs=-3", "--config.training.batch_size=0", "--config.training.batch_size=5000",
        "--config.training.learning_rate=0", "--config.training.learning_rate=-1", "--config.training.learning_rate=x",
        "--config.training.warmup=1", "--config.training.momentum=-0.1", "--config.training.precision=float64",
        "--config.model.width=-1", "--config.model.width=1.5", "--config.model.name=resnet19", "--config.model.name=",
        "--config.model.depth=(1, 1)", "--config.model.depth=(0, 1, 1, 1)", "--config.model.num_classes=0",
        "--config.model.num_classes=1", "--config.model.image_shape=(8, 8)", "--config.model.image_shape=(3, 16, 16)",
        "--config.model.image_shape=(0, 8, 3)", "--config.model.image_shape=8", "--config.data.name=cifar",
        "--config.data.mean=(0.5, 0.5)", "--config.data.train_images=-1", "--config.data.train_images=100000",
        "--config.data.std=(0,)", "--config.attack.name=badnet", "--config.attack.poisoning_ratio=2",
        "--config.attack.poisoning_ratio=-0.1", "--config.attack.target=99", "--config.attack.target=-1",
        "--config.defense=disarmed", "--config.images.images=0", "--config.images.images=9999999",
        "--config.inversion.steps=0", "--config.inversion.images=0", "--config.detection.threshold=0",
        "--config.detection.families=('patchwork',)", "--config.detection.families=()", "--config.detection.share=2",
        "--config.detection.unlearn=some", "--config.unlearning.rounds=0", "--config.unlearning.learning_rate=0",
        "--config.unlearning.emphasis=0.5", "--config.unlearning.distortion=0", "--config.layers=convolution",
        "--config.seed=x", "--config=nowhere.py", "--config=README.md", "--config=configs/otbr.py:badnets,quick",
    ):  # fmt: skip
        yield "launch.repair", ["--workdir={tmp}/work", flag]
    for flag in ("--config=configs/victims/digits.py:badnet", "--config=configs/victims/digits.py:badnets,slow"):
        yield "launch.train_victim", ["--workdir={tmp}/work", flag]
    yield "launch.repair", ["left over", "--workdir={tmp}/work"]
    yield "launch.bench", ["--grid=nowhere.py"]
    yield "launch.bench", ["--grid={tmp}/empty.py", "--workdir={tmp}/work"]
    yield "launch.bench", ["--only=nothing", "--workdir={tmp}/work"]
    yield "launch.bench", ["--note=cifar10", "--workdir={tmp}/work"]
    yield "launch.convert", ["--from={tmp}/empty.pt", "--to={tmp}/out.pt"]


def places() -> Iterator[Case]:
    """Directories and addresses that are wrong."""
    for place in (
        "gs://bucket/run",
        "s3://bucket/run",
        "{tmp}/notes.txt",
        "/proc/nothing",
        "{tmp}/full",
        "/dev/null/x",
    ):
        yield "launch.repair", [f"--workdir={place}"]
    for goal in ("{tmp}/out.onnx", "gs://bucket/out.pt", "{tmp}/full", "{tmp}/notes.txt", "/proc/out.pt", ""):
        yield "launch.convert", ["--from={tmp}/good.npz", f"--to={goal}", "--model=preact_resnet10"]
    yield "launch.inspect_network", [*SMALL, "--out={tmp}/graph.doc"]
    yield "launch.inspect_network", [*SMALL, "--out=/proc/graph.png"]
    yield "launch.inspect_network", [*SMALL, "--detect={tmp}/detection"]


def machines() -> Iterator[Case]:
    """Devices and processes that there are not, or that do not fit together."""
    for flags in (
        ["--devices=99"], ["--devices=-1"], ["--devices=two"], ["--process_id=1"], ["--num_processes=2"],
        ["--coordinator=here"], ["--coordinator=here:1"], ["--coordinator=here:1", "--num_processes=2"],
        ["--coordinator=here:1", "--num_processes=2", "--process_id=2"],
        ["--coordinator=here:1", "--num_processes=0", "--process_id=0"],
        ["--coordinator=localhost:99999", "--num_processes=2", "--process_id=0"],
        ["--coordinator=auto"],
    ):  # fmt: skip
        yield "launch.repair", ["--workdir={tmp}/work", *flags]
    yield "launch.train_victim", ["--config=configs/victims/digits.py:badnets", "--workdir={tmp}/work", "--devices=99"]


def checkpoints() -> Iterator[Case]:
    """Files that are no checkpoint of the network."""
    for name in (
        "nowhere.pt", "empty.pt", "notes.txt", "lfs.pt", "page.html", "cut.pt", "evil.pt", "good.npz", "hdf.h5",
        "full", "index.json", "shard-00001-of-00002.safetensors", "long.safetensors", "model.onnx", "folder",
    ):  # fmt: skip
        yield "launch.repair", [OWN, "--workdir={tmp}/work", *SMALL, f"--config.model.checkpoint={{tmp}}/{name}"]


def data() -> Iterator[Case]:
    """Arrays and folders that do not fit."""
    base = ["--workdir={tmp}/work"]
    for name in (
        "nowhere.npz",
        "notes.txt",
        "no_labels.npz",
        "from_one.npz",
        "wrong_size.npz",
        "negative.npz",
        "short.npz",
    ):
        yield "launch.repair", [*base, "--config.data.name=npz", f"--config.data.path={{tmp}}/{name}"]
    for name in ("nowhere", "folder", "full", "notes.txt"):
        yield "launch.repair", [*base, "--config.data.name=folder", f"--config.data.path={{tmp}}/{name}"]
    yield "launch.repair", [*base, "--config.data.name=mnist", "--config.data.data_dir={tmp}/nowhere"]
    yield "launch.repair", [*base, "--config.data.name=npz"]


def code() -> Iterator[Case]:
    """Python that is no network."""
    for name in (
        "nowhere.py:network", "code.py:nothing", "code.py:fails", "code.py:number", "code.py:wrong_logits",
        "code.py:wrong_images", "code.py:no_arrays", "code.py:routed", "syntax.py:network", "no.such.module:network",
    ):  # fmt: skip
        place = f"{{tmp}}/{name}" if ".py" in name else name
        flags = [OWN, "--workdir={tmp}/work", f"--config.model.name={place}", "--config.model.image_shape=(4, 4, 1)"]
        yield "launch.repair", flags


def methods() -> Iterator[Case]:
    """Defences and detectors that cannot be used so."""
    base = ["--workdir={tmp}/work"]
    plain = ["--config.model.name={tmp}/code.py:plain", "--config.model.image_shape=(8, 8, 1)"]
    for name in ("ft", "ft_sam", "fine_pruning", "nad", "anp", "rnp", "i_bau", "sau", "tsbd"):
        yield "launch.repair", [f"--config=configs/{name}.py", *base, *plain, "--config.data.name=none"]  # no images
    for name in ("anp", "rnp"):  # no normalisation
        own = ["--config.clean.name=npz", "--config.clean.path={tmp}/small.npz", "--config.data.name=none"]
        yield "launch.repair", [f"--config=configs/{name}.py", *base, *plain, *own]
    for flag in (
        "--config.finetuning.batch_size=500", "--config.finetuning.epochs=-1", "--config.finetuning.weight_decay=-1",
        "--config.clean.fraction=0.001", "--config.clean.fraction=2", "--config.clean.name=npz",
    ):  # fmt: skip
        yield "launch.repair", ["--config=configs/ft.py", *base, flag]
    own = ["--config.clean.name=npz", "--config.clean.path={tmp}/one_class.npz"]
    yield "launch.repair", ["--config=configs/tsbd.py", *base, *own]
    for flag in ("--config.selection.thresholds=(2,)", "--config.anp.learning.eps=-1", "--config.anp.threshold=1"):
        yield "launch.repair", ["--config=configs/anp.py", *base, flag]
    for flag in ("--config.nad.betas=()", "--config.nad.power=0"):
        yield "launch.repair", ["--config=configs/nad.py", *base, flag]
    for flag in ("--config.relearning.images=4", "--config.relearning.images=9999", "--config.repetition=-1"):
        yield "launch.repair", [*base, flag]
    for flag in ("--detector=neural", "--detector=neural_cleanse"):
        yield "launch.inspect_network", [*plain, "--detect={tmp}/detection", flag, *(["--config.data.name=none"])]


CODE = """
import jax.numpy as jnp
import jax
k = jax.random.split(jax.random.key(0))
plain_weights = {"params": {"c": jax.random.normal(k[0], (3, 3, 1, 6)), "d": jax.random.normal(k[1], (6, 10))}}
def plain_apply(v, x):
    p, numbers = v["params"], ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, p["c"], (1, 1), "SAME", dimension_numbers=numbers)
    return jnp.maximum(x, 0).mean((1, 2)) @ p["d"]
plain = (plain_apply, plain_weights)
number = 3
def fails():
    raise RuntimeError("two\\nlines")
w = {"params": {"w": jnp.ones((16, 10)), "v": jnp.ones((16, 3))}}
wrong_logits = (lambda v, x: x.reshape(len(x), -1) @ v["params"]["v"], w)
wrong_images = (lambda v, x: x @ v["params"]["w"], w)
no_arrays = (lambda v, x: x, {"params": {}})
routed = (lambda v, x: jnp.sort(x.reshape(len(x), -1) @ v["params"]["w"], axis=-1), w)
"""


def make_files(folder: pathlib.Path) -> None:
    """What the cases name."""
    (folder / "folder").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "something").write_text("of somebody else")
    texts = {
        "empty.pt": "", "empty.py": "x = 1", "notes.txt": "some notes", "code.py": CODE, "syntax.py": "def (",
        "lfs.pt": "version https://git-lfs.github.com/spec/v1\n", "page.html": "<!DOCTYPE html><p>404</p>",
        "index.json": '{"weight_map": {}}', "shard-00001-of-00002.safetensors": "x",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "cut.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    (folder / "evil.pt").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    (folder / "hdf.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(20))
    (folder / "long.safetensors").write_bytes(b"\xff" * 8 + b"{" + bytes(20))
    (folder / "model.onnx").write_bytes(b"\x08\x08")
    images, labels = np.zeros((20, 16, 16, 1), np.uint8), np.arange(20) % 10
    np.savez(folder / "good.npz", images=images, labels=labels)
    varied = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8, 1)
    np.savez(folder / "small.npz", images=varied, labels=np.arange(40) % 10)
    sixteen = np.arange(20 * 256, dtype=np.uint8).reshape(20, 16, 16, 1)
    np.savez(folder / "one_class.npz", images=sixteen, labels=labels % 9)
    np.savez(folder / "no_labels.npz", images=images)
    np.savez(folder / "from_one.npz", images=images, labels=labels + 1)
    np.savez(folder / "wrong_size.npz", images=images[:, 1:], labels=labels)
    np.savez(folder / "negative.npz", images=images - 0.5, labels=labels)
    np.savez(folder / "short.npz", images=images, labels=labels[1:])


def attempt(module: str, arguments: list[str], folder: pathlib.Path) -> tuple[int, str]:
    """The status of a program and what it says, in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read().decode(errors="replace")
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said
    os.dup2(write, 1)
    os.dup2(write, 2)
    os.chdir(folder)
    status = 1
    try:
        sys.argv = [module, *(argument.replace("{tmp}", str(folder)) for argument in arguments)]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    cases = [case for group in (settings, places, machines, checkpoints, data, code, methods) for case in group()]
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        make_files(folder)
        before = sorted(folder.rglob("*"))
        for module, arguments in cases:
            status, said = attempt(module, arguments, folder)
            lines = [line for line in said.splitlines() if line.strip()]
            left = [str(path) for path in sorted(folder.rglob("*")) if path not in before]
            fine = status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and not left
            bad += not fine
            if not fine or "-v" in sys.argv:
                print("ok" if fine else "BAD", module, *arguments, "|", status, left, "|", *lines[-4:], flush=True)
            shutil.rmtree(folder / "work", ignore_errors=True)
            for path in left:
                pathlib.Path(path).unlink(missing_ok=True)
    origin = provenance()  # asks for devices, which no fork survives
    row = {"program": "all", "fault": "bad input", "faults": len(cases), "in_one_line": len(cases) - bad, **origin}
    print({name: value for name, value in row.items() if name not in origin})
    with open(ROOT / "results" / "faults.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
