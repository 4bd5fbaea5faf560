"""Networks that are not this project's: functions over any pytree, Python paths, files in and repaired files out."""

import dataclasses
import pathlib
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors
import torch
from flax import nnx
from strange_networks import CASES, shuffled

from otbr_jax import InputError, Network, UnlearningConfig, otbr
from otbr_jax.contrib.otbr_plus import SweepConfig
from otbr_jax.data.sources import DataConfig
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.graph.choose import choose_layers
from otbr_jax.graph.trace import trace
from otbr_jax.interop import functions
from otbr_jax.interop.state_dict import from_state_dict, to_state_dict
from otbr_jax.interop.tensor_files import read_tensors, write_tensors
from otbr_jax.interop.torch_files import Envelope
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.runs.checkpoints import save_checkpoint
from otbr_jax.runs.networks import open_network
from otbr_jax.runs.orbax_folder import load_variables
from otbr_jax.settings import change
from otbr_jax.studies.inspection import inspect
from otbr_jax.studies.repair import repair
from otbr_jax.studies.repair_config import repair_config
from otbr_jax.studies.scanning import scan

MODEL = ModelConfig(name="preact_resnet10", width=4, image_shape=(8, 8, 1))
CONFIG = repair_config(
    model=MODEL,
    data=DataConfig(name="none"),
    otbr=OTBRConfig(unlearning=UnlearningConfig(steps=2, batch_size=8), gamma=0.2),
    sweep=SweepConfig(gamma=()),
)


def repaired(workdir, **model):
    config = change(CONFIG, model=dataclasses.replace(MODEL, **model))
    return repair(config, workdir, devices=jax.local_devices()[:1])


@pytest.fixture(scope="module")
def tensors():
    _, init = registry.build(MODEL)
    return to_state_dict(shuffled(jax.eval_shape(init, jax.random.key(0)), jax.random.key(1)))


# --- functions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("equinox", "nnx", "fused attention")), "haiku"]
)
def test_the_defence_runs_on_networks_of_every_library_and_gives_their_own_pytree_back(name):
    apply, like, shape = CASES[name]()
    variables = shuffled(like, jax.random.key(0))
    brought = functions.bring(apply, variables, image_shape=shape, num_classes=3)
    graph = trace(brought.network.apply, brought.variables, jnp.zeros((2, *shape)))
    config = OTBRConfig(unlearning=UnlearningConfig(steps=2, batch_size=8), gamma=0.3, layers="hidden")
    fixed, info = jax.jit(lambda v, key: otbr(brought.network, v, graph, key=key, config=config))(
        brought.variables, jax.random.key(1)
    )
    back = brought.restore(fixed)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    images = jax.random.uniform(jax.random.key(2), (4, *shape))
    np.testing.assert_allclose(apply(back, images), brought.network.apply(fixed, images), rtol=1e-5, atol=1e-6)
    assert not np.allclose(apply(back, images), apply(variables, images))
    assert all(bool(jnp.all(jnp.isfinite(score))) for score in info.scores.values())


def test_auto_takes_convolutions_where_they_are_most_of_the_hidden_layers():
    graphs = {
        name: open_network(ModelConfig(name, width=64 if name == "vit_b_16" else 8)).graph
        for name in ("vgg11_bn", "vit_b_16")
    }
    kinds = {name: {layer.kind for layer in choose_layers(graph, "auto")} for name, graph in graphs.items()}
    assert kinds == {"vgg11_bn": {"conv"}, "vit_b_16": {"conv", "dense"}}
    assert len(choose_layers(graphs["vgg11_bn"], "hidden")) == 10
    with pytest.raises(InputError, match=r"layers: expected convolutions layers .* found none"):
        choose_layers(graphs["vit_b_16"]._replace(layers=graphs["vit_b_16"].layers[1:]), "convolutions")
    with pytest.raises(InputError, match=r"otbr.layers: expected one of .*, found 'all'"):
        OTBRConfig(layers="all")


class Tutorial(eqx.Module):
    """As Equinox's tutorials write networks: functions and numbers among the layers."""

    layers: list

    def __init__(self, key):
        first, last = jax.random.split(key)
        pool = eqx.nn.MaxPool2d(2, 2)
        head = eqx.nn.Linear(32, 3, key=last)
        self.layers = [eqx.nn.Conv2d(1, 8, 3, padding=1, key=first), pool, jax.nn.relu, jnp.ravel, head, None]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = layer(x)
        return x


def test_what_is_no_array_stays_as_it_came():
    module = Tutorial(jax.random.key(0))
    apply = lambda model, images: jax.vmap(model)(images.transpose(0, 3, 1, 2))  # noqa: E731
    brought = functions.bring(apply, module, image_shape=(4, 4, 1), num_classes=3)
    assert sorted(brought.variables["params"]) == [f"layers/{n}/{part}" for n in (0, 4) for part in ("bias", "weight")]
    images = jnp.ones((2, 4, 4, 1))
    again = brought.restore(jax.tree.map(lambda leaf: leaf + 1, brought.variables))
    assert again.layers[2] is jax.nn.relu
    assert again.layers[5] is None
    np.testing.assert_allclose(again.layers[4].bias, module.layers[4].bias + 1)
    np.testing.assert_allclose(brought.network.apply(brought.variables, images), apply(module, images))
    assert len(trace(brought.network.apply, brought.variables, images).layers) == 2


def test_settings_beside_params_stay_as_they_came():
    variables = {"params": {"w": jnp.ones((4, 3)), "act": "relu"}, "arch": "mlp", "scale": 2.0, "none": None}

    def apply(v, images):
        assert v["params"]["act"] == "relu"
        assert v["arch"] == "mlp"
        return v["scale"] * jax.nn.relu(images.reshape(len(images), -1) @ v["params"]["w"])

    brought = functions.bring(apply, variables, image_shape=(2, 2, 1), num_classes=3)
    assert set(brought.variables) == {"params", "scale"}
    again = brought.restore(brought.variables)
    assert (again["arch"], again["params"]["act"], again["none"]) == ("mlp", "relu", None)


class Small(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.norm(self.conv(x))).mean((1, 2)))


def test_an_nnx_module_as_it_is():
    module = Small(nnx.Rngs(0))
    brought = functions.bring_nnx(module, image_shape=(4, 4, 1), num_classes=3)
    images = jax.random.normal(jax.random.key(0), (5, 4, 4, 1))
    module.eval()
    np.testing.assert_allclose(brought.network.apply(brought.variables, images), module(images), rtol=1e-6)
    logits, state = brought.network.train(brought.variables, images)
    module.train()
    np.testing.assert_allclose(logits, module(images), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state["state"]["norm"]["mean"], module.norm.mean[...], rtol=1e-6)
    assert jax.tree.structure(state["state"]) == jax.tree.structure(brought.variables["state"])
    assert len(trace(brought.network.apply, brought.variables, images).layers) == 2


def test_channels_first_are_noticed():
    with pytest.raises(InputError, match=r"model.image_shape: expected \(h, w, c\), such as \(16, 16, 3\); a network"):
        ModelConfig(image_shape=(3, 16, 16))


def test_counters_and_random_keys_stay_as_they_came():
    variables = [jnp.ones((4, 3)), jnp.arange(2), jax.random.key(0)]
    brought = functions.bring(
        lambda v, x: x.reshape(len(x), -1) @ v[0] + v[1][0], variables, image_shape=(2, 2, 1), num_classes=3
    )
    assert list(brought.variables["params"]) == ["0"]
    back = brought.restore({"params": {"0": jnp.zeros((4, 3))}})
    assert back[1] is variables[1]
    assert back[2] is variables[2]
    assert not back[0].any()


@pytest.mark.parametrize(
    ("apply", "variables", "message"),
    [
        (lambda v, x: x, [jnp.arange(3)], "variables: expected floating-point arrays, found none"),
        (lambda v, x: x.mean((1, 2, 3)), [jnp.ones(3)], r"apply: expected logits \(2, 3\) .* found \(2,\)"),
        (lambda v, x: x @ v["w"], [jnp.ones(3)], r"apply: expected a function .* it raised TypeError"),
        (lambda v, x: x.reshape(2, -1)[:, :3] * v[0], [jnp.ones(3)], r"expected logits \(3, 3\) .* found \(2, 3\)"),
        (lambda v, x: x, {"a/b": jnp.ones(3), "a": {"b": jnp.ones(3)}}, "expected a name for each array, found 'a/b'"),
    ],
)
def test_what_is_no_classifier_is_refused(apply, variables, message):
    with pytest.raises(InputError, match=message) as caught:
        functions.bring(apply, variables, image_shape=(2, 2, 1), num_classes=3)
    assert "\n" not in str(caught.value)


# --- Python paths -------------------------------------------------------------------------------------------------

FILE = """
import jax, jax.numpy as jnp
from otbr_jax import Layer, Network, NeuronGraph

def apply(variables, images):
    x = jax.nn.relu(images.reshape(len(images), -1) @ variables["first"] + variables["bias"])
    return x @ variables["second"]

key = jax.random.key(0)
variables = {"first": jax.random.normal(key, (64, 8)), "bias": jnp.ones(8), "second": jax.random.normal(key, (8, 10))}
pair = (apply, variables)
graph = NeuronGraph((Layer("params/first", "dense", (1,), (0,), 8, 64),))
stated = (Network(lambda v, x: apply(v["params"], x), (8, 8, 1), 10), {"params": variables}, graph)

def function():
    return pair

def broken():
    raise RuntimeError("no weights here")

number = 3

def leaving():
    raise SystemExit("bye")

triple = (*pair, "graph")
wrong = (*pair, NeuronGraph((Layer("params/first", "dense", (1,), (0,), 9, 64),)))
nan = (apply, {**variables, "bias": jnp.full(8, jnp.nan)})
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_network.py"
    path.write_text(textwrap.dedent(FILE))
    return path


@pytest.mark.parametrize("attribute", ["pair", "function", "stated"])
def test_a_python_path_names_a_network(file, attribute):
    subject = open_network(dataclasses.replace(MODEL, name=f"{file}:{attribute}"))
    assert isinstance(subject.network, Network)
    (hidden,) = subject.graph.hidden_layers
    assert (hidden.name, hidden.neurons) == ("params/first", 8)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{file}:nothing", "expected 'nothing' in .*my_network.py, found none"),
        ("{file}:number", r"to be \(apply, variables\) or to return it, found int"),
        ("{file}:triple", "expected a NeuronGraph as the third of .*, found str"),
        ("{file}:wrong", "graph: layer 'params/first': expected neurons=8"),
        ("{file}:broken", "broken failed: RuntimeError: no weights here"),
        ("{file}:leaving", "leaving failed: SystemExit: bye"),
        ("~nobody-of-this-name/x.py:pair", "expected a Python file, found nothing at"),
        ("{file}:nan", "expected finite weights, found 8 NaN or infinite values in params/bias"),
        ("{file}x.py:pair", "expected a Python file, found nothing at"),
        ("no_such_module:pair", "cannot import no_such_module: ModuleNotFoundError"),
    ],
)
def test_a_wrong_python_path_ends_in_one_line(file, path, message):
    with pytest.raises(InputError, match=message) as caught:
        open_network(dataclasses.replace(MODEL, name=path.format(file=file)))
    assert "\n" not in str(caught.value)


def test_own_code_is_repaired_without_a_checkpoint(file, tmp_path):
    result = repaired(tmp_path / "w", name=f"{file}:pair")
    assert [layer.name for layer in result.layers] == ["params/first"]
    assert sorted(result.variables) == ["bias", "first", "second"]
    saved = load_variables(tmp_path / "w" / "repaired", result.variables, name="repaired")
    np.testing.assert_array_equal(saved["first"], result.variables["first"])
    with pytest.raises(InputError, match=r"model.checkpoint: expected none, since .* brings its variables"):
        repaired(tmp_path / "v", name=f"{file}:pair", checkpoint="victim.pt")


# --- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def readings(monkeypatch):
    """The names of the files whose arrays are read, each as often as it is."""
    found = []

    def counted(function, path):
        def read(*args, **kwargs):
            found.append(pathlib.Path(path(args)).name)
            return function(*args, **kwargs)

        return read

    monkeypatch.setattr(torch, "load", counted(torch.load, lambda args: args[0]))
    monkeypatch.setattr(safetensors, "safe_open", counted(safetensors.safe_open, lambda args: args[0]))
    orbax = ocp.StandardCheckpointer
    monkeypatch.setattr(orbax, "restore", counted(orbax.restore, lambda args: args[1]))
    return found


@pytest.mark.parametrize("ending", [".pt", ".safetensors", ""])
def test_a_file_is_read_once_in_a_run(ending, tensors, tmp_path, readings):
    """Which network it is, its weights, and how another is written like it, all come from one reading."""
    path = tmp_path / f"victim{ending}"
    if ending:
        write_tensors(path, tensors, format="torch" if ending == ".pt" else "safetensors")
    else:
        save_checkpoint(path, from_state_dict(tensors, open_network(MODEL).like))
    result = repaired(tmp_path / "w", checkpoint=str(path), name="" if ending else MODEL.name)
    assert result.config.victim.model.name == MODEL.name
    assert readings.count(path.name) == 1
    assert len(result.files) == (1 if ending else 0)


def test_a_scan_reads_a_file_once_even_where_it_is_another_network(tensors, tmp_path, readings):
    write_tensors(tmp_path / "victim.pt", tensors, format="torch")
    config = change(CONFIG, model=dataclasses.replace(MODEL, name="vgg19_bn", width=8))
    (line,) = scan(config, [tmp_path / "victim.pt"], detector="free_eagle", say=lambda line: None)
    assert (line["network"], line.get("error")) == ("preact_resnet10, width 4", None)
    assert readings == ["victim.pt"]


def test_a_half_precision_safetensors_file_is_written_back_as_it_was(tensors, tmp_path, caplog):
    half = {f"module.{name}": tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items() if tensor.ndim}
    write_tensors(tmp_path / "victim.safetensors", half, format="safetensors")
    result = repaired(tmp_path / "w", checkpoint=str(tmp_path / "victim.safetensors"))
    assert [record.levelname for record in caplog.records if "bfloat16" in record.message] == ["WARNING"]
    assert [path.name for path in result.files] == ["repaired.safetensors"]
    found = read_tensors(result.files[0], name="file").tensors
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {n: (t.shape, t.dtype) for n, t in half.items()}
    changed = {name for name, tensor in half.items() if not np.array_equal(found[name], tensor)}
    assert changed
    assert all("conv" in name for name in changed)  # BatchNorm, shortcuts and classifier stay


def test_an_attack_result_becomes_a_defense_result_that_pytorch_loads(tensors, tmp_path):
    torch = pytest.importorskip("torch")
    networks = pytest.importorskip("torch_networks")
    surroundings = Envelope({"model_name": "preactresnet10", "num_classes": 10, "model": None}, ("model",))
    write_tensors(tmp_path / "attack_result.pt", tensors, format="torch", envelope=surroundings)
    result = repaired(tmp_path / "w", checkpoint=str(tmp_path / "attack_result.pt"))
    assert [path.name for path in result.files] == ["defense_result.pt"]
    found = torch.load(result.files[0], weights_only=True)
    assert (found["model_name"], found["num_classes"]) == ("preactresnet10", 10)
    module = networks.PreActResNet(networks.PreActBlock, (1, 1, 1, 1), num_classes=10, width=4)
    module.conv1 = torch.nn.Conv2d(1, 4, 3, padding=1, bias=False)
    module.load_state_dict(found["model"], strict=True)
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    with torch.no_grad():
        logits = module.eval()(torch.from_numpy(np.array(images.transpose(0, 3, 1, 2)))).numpy()
    expected = np.asarray(result.network.apply(result.variables, images))
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    assert any(not np.array_equal(found["model"][name].numpy(), tensor) for name, tensor in tensors.items())


# --- inspecting ---------------------------------------------------------------------------------------------------


def test_a_graph_that_is_wrong_is_not_called_verified(file):
    file.write_text(
        file.read_text()
        + """
from otbr_jax.graph.graph import Axis, Group
wrong_group = Group(8, (Axis("params/first", 1, tuple(range(8))),))
network = Network(lambda v, x: apply(v["params"], x), (8, 8, 1), 10)
misled = (network, {"params": variables}, NeuronGraph(graph.layers, (wrong_group,)))
"""
    )
    config = change(CONFIG, model=dataclasses.replace(MODEL, name=f"{file}:stated"))
    assert "nothing to verify: the neuron graph has no groups" in inspect(config, verify=True)
    config = change(CONFIG, model=dataclasses.replace(MODEL, name=f"{file}:misled"))
    with pytest.raises(
        InputError, match=r"graph is wrong: permuting 8 neurons \(on params/first axis 1, ...\) changes"
    ):
        inspect(config, verify=True)


def test_the_graph_is_printed_drawn_and_verified(tmp_path):
    text = inspect(CONFIG, drawing=tmp_path / "graph.svg", verify=True)
    lines = text.splitlines()
    assert lines[0].split() == ["#", "layer", "kind", "neurons", "inputs", "weights", "path", "fed", "by", "tied", "to"]
    assert lines[2].split() == ["0", "conv1", "conv", "4", "1", "3x3x1x4", "main", "2"]
    assert next(line for line in lines if "shortcut" in line).split()[6] == "side"
    assert next(line for line in lines if "linear" in line).split()[6] == "output"
    assert "13 layers" in text
    assert "repaired: 9 layers (conv) with 124 neurons" in text
    assert "changes the outputs by at most " in text
    assert (tmp_path / "graph.svg").read_text().startswith("<?xml")
    with pytest.raises(InputError, match=r"--out: expected a name that ends in one of \.png, \.svg, \.pdf"):
        inspect(CONFIG, drawing=tmp_path / "graph.txt")
    with pytest.raises(InputError, match=r"--out: cannot write"):
        inspect(CONFIG, drawing=tmp_path / "nowhere" / "graph.png")
