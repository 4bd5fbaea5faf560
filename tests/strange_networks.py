"""Small networks of other libraries and designs than this project's: `CASES[name]() -> (apply, variables, shape)`."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

CONV = ("NHWC", "HWIO", "NHWC")


def shuffled(variables, key):
    """Random values everywhere, so that a wrongly permuted BatchNorm vector cannot hide behind zeros and ones."""

    def draw(key, x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        if x.size > max(x.shape, default=0):  # no vector, however many axes of size 1 it has
            return jax.random.normal(key, x.shape, x.dtype) / np.prod(x.shape[:-1]) ** 0.5
        return jax.random.uniform(key, x.shape, x.dtype, minval=0.2, maxval=1.0)

    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [draw(k, x) for k, x in zip(keys, leaves, strict=True)])


def of_shapes(**shapes):
    return {"params": {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}}


def conv(images, kernel, **options):
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=CONV, **options)


def linen(module, shape):
    variables = jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, *shape))), jax.random.key(0))
    return lambda v, x: module.apply(v, x), variables, shape


# --- by hand ------------------------------------------------------------------------------------------------------


def plain():
    """Bias, 2 x 2 pooling, flattening, two dense layers; no library."""

    def apply(variables, images):
        params = variables["params"]
        x = jax.nn.relu(conv(images, params["kernel"]) + params["bias"])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.gelu(x.reshape(len(x), -1) @ params["hidden"])
        return x @ params["out"].T

    return apply, of_shapes(kernel=(3, 3, 2, 5), bias=(5,), hidden=(2 * 2 * 5, 7), out=(3, 7)), (4, 4, 2)


def channels_first():
    """NCHW inside, a kernel in OIHW, flattened as PyTorch flattens, a padded-identity shortcut."""

    def apply(variables, images):
        params = variables["params"]
        x = images.transpose(0, 3, 1, 2)
        for name in ("first", "second"):
            y = jax.lax.conv_general_dilated(x, params[name], (1, 1), "SAME")
            more = y.shape[1] - x.shape[1]
            x = jax.nn.relu(y) + (jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) if name == "second" else 0)
        return x.reshape(len(x), -1) @ params["out"]

    return apply, of_shapes(first=(4, 2, 3, 3), second=(7, 4, 3, 3), out=(7 * 9, 3)), (3, 3, 2)


def grouped():
    """A bottleneck with a grouped convolution (ResNeXt), a depthwise one with two neurons a channel, a fixed blur."""

    def apply(variables, images):
        params = variables["params"]
        x = jax.nn.relu(conv(images, params["reduce"]))
        x = jax.nn.relu(conv(x, params["grouped"], feature_group_count=3))
        x = conv(x, params["expand"]) + conv(images, params["shortcut"])
        x = conv(x, params["depthwise"], feature_group_count=5)
        x = conv(jax.nn.relu(x), jnp.full((3, 3, 1, 10), 1 / 9), feature_group_count=10)
        return x.mean((1, 2)) @ params["out"]

    shapes = of_shapes(
        reduce=(1, 1, 2, 12), grouped=(3, 3, 4, 6), expand=(1, 1, 6, 5), shortcut=(1, 1, 2, 5),
        depthwise=(3, 3, 1, 10), out=(10, 3),
    )  # fmt: skip
    return apply, shapes, (4, 4, 2)


def fused_attention():
    """A transformer block as PyTorch writes it: one projection for queries, keys and values, a class token."""

    def norm(x, scale):
        return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-3) * scale

    def apply(variables, images):
        p = variables["params"]
        x = jax.lax.conv_general_dilated(images, p["patches"], (2, 2), "VALID", dimension_numbers=CONV)
        x = x.reshape(len(x), -1, x.shape[-1])
        x = jnp.concatenate([jnp.broadcast_to(p["token"], (len(x), 1, x.shape[-1])), x], 1) + p["positions"]
        qkv = (norm(x, p["scale"]) @ p["qkv"] + p["qkv_bias"]).reshape(*x.shape[:2], 3, 2, 3).transpose(2, 0, 3, 1, 4)
        weights = jax.nn.softmax(qkv[0] @ qkv[1].swapaxes(-1, -2) / 3**0.5)
        x = x + (weights @ qkv[2]).transpose(0, 2, 1, 3).reshape(*x.shape[:2], 6) @ p["proj"]
        x = x + jax.nn.gelu(x @ p["up"], approximate=False) @ p["down"]
        return x[:, 0] @ p["out"]

    shapes = of_shapes(
        patches=(2, 2, 2, 5), token=(1, 1, 5), positions=(1, 5, 5), scale=(5,), qkv=(5, 18), qkv_bias=(18,),
        proj=(6, 5), up=(5, 7), down=(7, 5), out=(5, 3),
    )  # fmt: skip
    return apply, shapes, (4, 4, 2)


def mixer():
    """Token mixing: dense layers over positions, which may not change places, and over channels."""

    def apply(variables, images):
        p = variables["params"]
        x = conv(images, p["patches"]).reshape(len(images), 9, 6)
        x = x + (jax.nn.gelu(x.swapaxes(1, 2) @ p["tokens_up"]) @ p["tokens_down"]).swapaxes(1, 2)
        x = x + jax.nn.gelu(x @ p["up"]) @ p["down"]
        return x.mean(1) @ p["out"]

    shapes = of_shapes(patches=(1, 1, 2, 6), tokens_up=(9, 4), tokens_down=(4, 9), up=(6, 5), down=(5, 6), out=(6, 3))
    return apply, shapes, (3, 3, 2)


def concatenated_relu():
    """x and -x joined, a standardised kernel, a convolution added to the image itself, local sums over positions."""

    def apply(variables, images):
        p = variables["params"]
        x = images + conv(images, p["same"])
        kernel = p["standard"]
        kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-2)
        x = conv(x, kernel)
        x = jax.nn.relu(jnp.concatenate([x, -x], -1))
        x = jnp.flip(conv(x, p["next"]), -1)
        return jnp.cumsum(x, 1).mean((1, 2)) @ p["out"]

    return apply, of_shapes(same=(3, 3, 2, 2), standard=(3, 3, 2, 4), next=(1, 1, 8, 6), out=(6, 3)), (4, 4, 2)


def parts():
    """Halves of the channels treated differently (split, slice, stack), one channel as a gate, weights per part."""

    def apply(variables, images):
        p = variables["params"]
        u, t = jnp.split(conv(images, p["first"]), 2, -1)
        x = jnp.concatenate([jax.nn.relu(u), jnp.tanh(t)], -1)
        x = x * jax.nn.sigmoid(x[..., :1])
        shifted = jnp.concatenate([jnp.roll(x[..., :3], 1, 1), x[..., 3:]], -1)
        a, b = jnp.unstack(jnp.stack([shifted, jnp.tile(x.mean((1, 2), keepdims=True), (1, 4, 4, 1))], -1), axis=-1)
        return jax.nn.relu(conv(a * b, p["second"])).mean((1, 2)) @ p["out"]

    return apply, of_shapes(first=(3, 3, 2, 8), second=(3, 3, 8, 6), out=(6, 3)), (4, 4, 2)


def widening(widen):
    """The CIFAR ResNet's shortcut that pads channels, written in one of the ways people write it."""

    def apply(variables, images):
        p = variables["params"]
        x = jax.nn.relu(conv(images, p["first"]))
        y = conv(jax.nn.relu(conv(x, p["second"])[:, ::2, ::2]), p["third"])
        x = jax.nn.relu(y + widen(x[:, ::2, ::2]))
        return x.mean((1, 2)) @ p["out"]

    shapes = {"first": (3, 3, 2, 4), "second": (3, 3, 4, 8), "third": (3, 3, 8, 8), "out": (8, 5)}
    return apply, of_shapes(**shapes), (4, 4, 2)


def _zeros(x):
    return jnp.zeros((*x.shape[:3], 8))


WIDENINGS = {
    "padded": lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 0), (2, 2))),
    "set": lambda x: _zeros(x).at[..., 2:6].set(x),
    "added": lambda x: _zeros(x).at[..., 2:6].add(x),
    "updated": lambda x: jax.lax.dynamic_update_slice(_zeros(x), x, (0, 0, 0, 2)),
    "set by index": lambda x: _zeros(x).at[..., jnp.arange(2, 6)].set(x),
    "set one by one": lambda x: _zeros(x).at[..., 2].set(x[..., 0]).at[..., 3:6].set(x[..., 1:]),
}


def looked_up():
    """Channels taken by numbers: shuffled, one alone, a part from a number on."""

    def apply(variables, images):
        p = variables["params"]
        x = jax.nn.relu(conv(images, p["first"]))
        shuffled_channels = x[..., jnp.array([2, 0, 5, 4, 1, 3])]
        part = jax.lax.dynamic_slice(x, (0, 0, 0, jnp.int32(1)), (*x.shape[:3], 3))
        alone = x[..., jnp.array(4)]
        x = jnp.concatenate([shuffled_channels, part, alone[..., None]], axis=-1)
        return jax.nn.relu(conv(x, p["second"])).mean((1, 2)) @ p["out"]

    return apply, of_shapes(first=(3, 3, 2, 6), second=(3, 3, 10, 3), out=(3, 5)), (4, 4, 2)


def windows():
    """Windows as Swin partitions them, pooling by reshaping, space to depth, resizing, transposing while flattening."""

    def apply(variables, images):
        p = variables["params"]
        x = images.reshape(-1, 2, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 2, 2, 8)
        x = jax.nn.relu(conv(jax.image.resize(x, (len(images), 4, 4, 8), "nearest"), p["first"]))
        w = jnp.roll(x, (1, 1), (1, 2)).reshape(-1, 2, 2, 2, 2, 6).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 6)
        w = w + jax.nn.gelu((w - w.mean(1, keepdims=True)) @ p["up"]) @ p["down"]
        x = w.reshape(-1, 2, 2, 2, 2, 6).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 6)
        x = x.reshape(-1, 2, 2, 2, 2, 6).mean((2, 4))
        return jax.lax.reshape(x, (len(images), 24), (0, 3, 1, 2)) @ p["out"]

    return apply, of_shapes(first=(3, 3, 8, 6), up=(6, 5), down=(5, 6), out=(24, 3)), (4, 4, 2)


def fixed_filters():
    """Another fixed filter for every channel: they cannot change places, those of the next layer can."""

    def apply(variables, images):
        p = variables["params"]
        filters = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 1, 6)), jnp.float32)
        x = conv(conv(images, p["first"]), filters, feature_group_count=6)
        x = jax.nn.relu(conv(x, p["second"]))
        return jax.nn.relu(x.mean((1, 2)) @ p["hidden"]) @ p["out"]

    shapes = of_shapes(first=(3, 3, 2, 6), second=(3, 3, 6, 5), hidden=(5, 4), out=(4, 3))
    return apply, shapes, (4, 4, 2)


# --- Flax Linen ---------------------------------------------------------------------------------------------------


class Concatenating(nn.Module):
    """Two convolutions joined by a concatenation, then a depthwise convolution."""

    @nn.compact
    def __call__(self, x):
        a = nn.relu(nn.Conv(3, (3, 3), name="a")(x))
        b = nn.Conv(4, (3, 3), name="b")(a)
        x = jnp.concatenate([a, b], axis=-1)
        x = nn.Conv(7, (3, 3), feature_group_count=7, name="depthwise")(x)
        x = nn.Conv(6, (1, 1), name="c")(nn.silu(x))
        return nn.Dense(3, name="out")(nn.avg_pool(x, (4, 4)).reshape(len(x), -1))


class Gated(nn.Module):
    """A shared kernel used twice, squeeze-and-excitation, a split, rematerialisation, a convolutional classifier."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), name="stem")(x)
        shared = nn.Conv(6, (3, 3), name="shared")
        x = nn.relu(shared(nn.relu(shared(x))))
        gate = nn.Conv(6, (1, 1), name="gate")(x.mean((1, 2), keepdims=True))
        x = x * nn.sigmoid(gate)
        a, b = jnp.split(nn.Conv(8, (1, 1), name="glu")(x), 2, axis=-1)
        x = jax.checkpoint(jnp.tanh)(a) * nn.sigmoid(b)
        return nn.Conv(3, (1, 1), name="classifier")(x).mean((1, 2))


class GroupNormed(nn.Module):
    """Group normalisation with a residual, all tokens flattened into the classifier."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.GroupNorm(num_groups=3)(nn.Conv(12, (3, 3))(x)))
        x = x + nn.Conv(12, (1, 1))(x)
        return nn.Dense(3)(x.reshape(len(x), -1))


class Attending(nn.Module):
    """Flax's own multi-head attention, whose kernels have an axis of heads."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (2, 2), (2, 2))(x).reshape(len(x), 4, 6)
        x = x + self.param("positions", nn.initializers.zeros, (1, 4, 6))
        x = x + nn.MultiHeadDotProductAttention(num_heads=3)(nn.LayerNorm()(x))
        x = x + nn.Dense(6)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x))))
        return nn.Dense(3)(nn.LayerNorm()(x).mean(1))


# --- NNX, Haiku, Equinox -------------------------------------------------------------------------------------------


class NNXNet(nnx.Module):
    """A residual convolutional network."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(2, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.block = nnx.Conv(6, 6, (3, 3), use_bias=False, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=6, qkv_features=8, decode=False, rngs=rngs)
        self.out = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        x = x + self.block(x)
        tokens = x.reshape(len(x), -1, 6)
        tokens = tokens + self.attention(tokens)
        return self.out(tokens.mean(1))


def flax_nnx():
    graph, state = nnx.split(NNXNet(nnx.Rngs(0)))
    return lambda v, x: nnx.merge(graph, v)(x), state, (4, 4, 2)


def haiku():
    def forward(x, train):
        x = hk.Conv2D(6, 3, name="stem")(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training=train))
        x = x + hk.Conv2D(6, 3)(x)
        x = hk.MaxPool((2, 2, 1), (2, 2, 1), "VALID")(x)
        x = hk.Flatten()(x)
        return hk.nets.MLP([7, 3])(x)

    net = hk.without_apply_rng(hk.transform_with_state(forward))
    params, state = net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)), True)
    return lambda v, x: net.apply(v["params"], v["state"], x, False)[0], {"params": params, "state": state}, (4, 4, 2)


class EquinoxNet(eqx.Module):
    """Works on one image [c, h, w]: convolutions, layer normalisation, attention over positions."""

    stem: eqx.nn.Conv2d
    block: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    out: eqx.nn.MLP

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.stem = eqx.nn.Conv2d(2, 6, 3, padding=1, key=keys[0])
        self.block = eqx.nn.Conv2d(6, 6, 3, padding=1, key=keys[1])
        self.norm = eqx.nn.LayerNorm(6)
        self.attention = eqx.nn.MultiheadAttention(2, 6, key=keys[2])
        self.out = eqx.nn.MLP(6, 3, 8, 2, key=keys[3])

    def __call__(self, image):
        x = jax.nn.relu(self.stem(image))
        x = eqx.nn.MaxPool2d(2, 2)(x + self.block(x))
        tokens = x.reshape(6, -1).T
        normed = jax.vmap(self.norm)(tokens)
        tokens = tokens + self.attention(normed, normed, normed)
        return self.out(tokens.mean(0))


def equinox():
    params, static = eqx.partition(EquinoxNet(jax.random.key(0)), eqx.is_array)

    def apply(variables, images):
        return jax.vmap(eqx.combine(variables, static))(images.transpose(0, 3, 1, 2))

    return apply, params, (4, 4, 2)


CASES = {
    "plain": plain,
    "channels first": channels_first,
    "grouped": grouped,
    "fused attention": fused_attention,
    "mixer": mixer,
    "concatenated relu": concatenated_relu,
    "parts": parts,
    "windows": windows,
    **{f"widened, {name}": functools.partial(widening, widen) for name, widen in WIDENINGS.items()},
    "looked up": looked_up,
    "fixed filters": fixed_filters,
    "concatenating": lambda: linen(Concatenating(), (4, 4, 2)),
    "gated": lambda: linen(Gated(), (4, 4, 2)),
    "group norm": lambda: linen(GroupNormed(), (4, 4, 2)),
    "attending": lambda: linen(Attending(), (4, 4, 2)),
    "nnx": flax_nnx,
    "haiku": haiku,
    "equinox": equinox,
}
