"""The PyTorch originals of the networks in `otbr_jax.models`, with random weights and statistics."""

import sys

import torch
from torch import nn
from torch.nn import functional

# Beside JAX's threads, PyTorch's own wait for each other far longer than these small networks take on one.
torch.set_num_threads(1)


def _import_torchvision():
    """torchvision's networks, also where its compiled operators do not fit this build of PyTorch.

    A CUDA build of torchvision beside a CPU build of PyTorch cannot load its library of operators, and then fails to
    import since it refers to them. No network here calls one: it is enough that the operators exist by name.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor x) -> Tensor")
        import torchvision

        torchvision._operators_by_name = library  # they exist as long as this object does
    return torchvision.models


class PreActBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs, features, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        if stride != 1 or inputs != features:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, features, 1, stride, bias=False))

    def forward(self, x):
        active = functional.relu(self.bn1(x))
        shortcut = self.shortcut(active) if hasattr(self, "shortcut") else x
        return self.conv2(functional.relu(self.bn2(self.conv1(active)))) + shortcut


class PreActBottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs, features, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, features, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(features)
        self.conv3 = nn.Conv2d(features, 4 * features, 1, bias=False)
        if stride != 1 or inputs != 4 * features:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, 4 * features, 1, stride, bias=False))

    def forward(self, x):
        active = functional.relu(self.bn1(x))
        shortcut = self.shortcut(active) if hasattr(self, "shortcut") else x
        out = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return self.conv3(functional.relu(self.bn3(out))) + shortcut


class PreActResNet(nn.Module):
    def __init__(self, block, depth, num_classes, width=64):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        inputs = width
        for stage, blocks in enumerate(depth):
            layers = []
            for i in range(blocks):
                layers.append(block(inputs, width * 2**stage, 2 if stage > 0 and i == 0 else 1))
                inputs = width * 2**stage * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class SmallBlock(nn.Module):
    def __init__(self, inputs, features, stride, padded):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.stride, self.features = stride, features
        if stride != 1 and not padded:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, features, 1, stride, bias=False), nn.BatchNorm2d(features)
            )

    def forward(self, x):
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        elif self.stride != 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.features // 4, self.features // 4))
        return functional.relu(out + x)


class SmallResNet(nn.Module):
    """The ResNet of the paper's CIFAR section: three stages of 16, 32 and 64 channels."""

    def __init__(self, blocks, num_classes, padded):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        inputs = 16
        for stage in range(3):
            layers = []
            for i in range(blocks):
                layers.append(SmallBlock(inputs, 16 * 2**stage, 2 if stage > 0 and i == 0 else 1, padded))
                inputs = 16 * 2**stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, inputs, features, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.convShortcut = None if inputs == features else nn.Conv2d(inputs, features, 1, stride, bias=False)

    def forward(self, x):
        active = functional.relu(self.bn1(x))
        out = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    def __init__(self, inputs, features, stride, blocks):
        super().__init__()
        layers = [WideBlock(inputs if i == 0 else features, features, stride if i == 0 else 1) for i in range(blocks)]
        self.layer = nn.Sequential(*layers)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = WideStage(16, width, 1, 4)
        self.block2 = WideStage(width, 2 * width, 2, 4)
        self.block3 = WideStage(2 * width, 4 * width, 2, 4)
        self.bn1, self.fc = nn.BatchNorm2d(4 * width), nn.Linear(4 * width, num_classes)

    def forward(self, x):
        x = functional.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


class SmallMobileBlock(nn.Module):
    def __init__(self, inputs, features, expansion, stride):
        super().__init__()
        wide = expansion * inputs
        self.conv1, self.bn1 = nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.conv3, self.bn3 = nn.Conv2d(wide, features, 1, bias=False), nn.BatchNorm2d(features)
        self.shortcut = nn.Sequential()
        if stride == 1 and inputs != features:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, features, 1, bias=False), nn.BatchNorm2d(features))
        self.stride = stride

    def forward(self, x):
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(functional.relu(self.bn2(self.conv2(out)))))
        return out + self.shortcut(x) if self.stride == 1 else out


class SmallMobileNet(nn.Module):
    """MobileNetV2 for CIFAR: expansion, channels, blocks and first stride of each stage."""

    stages = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, num_classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
        layers, inputs = [], 32
        for expansion, features, blocks, stride in self.stages:
            for i in range(blocks):
                layers.append(SmallMobileBlock(inputs, features, expansion, stride if i == 0 else 1))
                inputs = features
        self.layers = nn.Sequential(*layers)
        self.conv2, self.bn2 = nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, num_classes)

    def forward(self, x):
        x = functional.relu(self.bn2(self.conv2(self.layers(functional.relu(self.bn1(self.conv1(x)))))))
        return self.linear(x.mean((2, 3)))


def _resnet_for_small_images(models, name, num_classes):
    """torchvision's, with a 3x3 stem that keeps the resolution."""
    model = getattr(models, name)(num_classes=num_classes)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


SMALL = {"resnet20_cifar": (3, False), "resnet56_cifar": (9, False), "resnet20_cifar_padded": (3, True)}
PREACT = {
    "preact_resnet18": (PreActBlock, (2, 2, 2, 2)),
    "preact_resnet34": (PreActBlock, (3, 4, 6, 3)),
    "preact_resnet50": (PreActBottleneck, (3, 4, 6, 3)),
}
VGG = {"vgg11_bn": "A", "vgg16_bn": "D", "vgg19_bn": "E"}


def _vgg(models, name, num_classes, width):
    """torchvision's VGG, with fewer channels where `width` is less than 64."""
    channels = [entry if entry == "M" else entry * width // 64 for entry in models.vgg.cfgs[VGG[name]]]
    model = models.vgg.VGG(models.vgg.make_layers(channels, batch_norm=True), num_classes, dropout=0.0)
    if width < 64:  # the number of channels that the dense layers expect is fixed
        for i, inputs in ((0, 7 * 7 * 8 * width), (3, 64 * width)):
            model.classifier[i] = nn.Linear(inputs, 64 * width)
        model.classifier[6] = nn.Linear(64 * width, num_classes)
    return model


def _small_vgg(models, name, num_classes, width):
    """torchvision's layers on 32 x 32, with two hidden dense layers of as many channels, or none."""
    kind = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}[name.split("_")[0]]
    channels = [entry if entry == "M" else entry * width // 64 for entry in models.vgg.cfgs[kind]]
    model = nn.Module()
    model.features = models.vgg.make_layers(channels, batch_norm=True)
    wide = 8 * width
    hidden = [layer for _ in range(2) for layer in (nn.Linear(wide, wide), nn.ReLU(), nn.Identity())]
    last = nn.Linear(wide, num_classes)
    model.classifier = nn.Sequential(*hidden, last) if "_bn_" in name else last
    model.forward = lambda x: model.classifier(model.features(x).mean((2, 3)))
    return model


def _vit(models, num_classes, image_size, width):
    """torchvision's ViT-B/16, with fewer heads where `width` is less than 768."""
    return models.VisionTransformer(
        image_size,
        16,
        num_layers=12,
        num_heads=width // 64,
        hidden_dim=width,
        mlp_dim=4 * width,
        num_classes=num_classes,
    )


def original(name, *, num_classes=1000, image_size=224, width=0):
    """The network without its values (on PyTorch's meta device), dropout and stochastic depth off.

    `width` is that of a VGG, ViT or wide ResNet, 0 for the published one, which all others have.
    """
    models = _import_torchvision()
    with torch.device("meta"):
        if name in PREACT:
            return PreActResNet(*PREACT[name], num_classes)
        if name in VGG:
            return _vgg(models, name, num_classes, width or 64)
        if name in SMALL:
            return SmallResNet(SMALL[name][0], num_classes, SMALL[name][1])
        if name == "wide_resnet28_10":
            return WideResNet(num_classes, width or 160)
        if name == "mobilenet_v2_cifar":
            return SmallMobileNet(num_classes)
        if name.startswith("vgg") and name.endswith("_cifar"):
            return _small_vgg(models, name, num_classes, width or 64)
        if name.endswith("_cifar"):
            return _resnet_for_small_images(models, name.removesuffix("_cifar"), num_classes)
        if name == "vit_b_16":
            return _vit(models, num_classes, image_size, width or 768)
        settings = {
            "convnext_tiny": {"stochastic_depth_prob": 0.0},
            "efficientnet_b0": {"stochastic_depth_prob": 0.0, "dropout": 0.0},
            "mobilenet_v3_large": {"dropout": 0.0},
        }
        return getattr(models, name)(num_classes=num_classes, **settings.get(name, {}))


def build(name, **settings):
    """The network with every parameter and running statistic drawn at random, so that none can hide behind 0 or 1."""
    model = original(name, **settings).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for leaf, tensor in model.state_dict().items():
        if leaf.endswith("num_batches_tracked"):
            tensor.zero_()
        elif tensor.ndim > 1:
            tensor.normal_(generator=generator).mul_((2 / tensor[0].numel()) ** 0.5)
        elif leaf.endswith(("weight", "running_var")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            tensor.normal_(0, 0.1, generator=generator)
    return model


def tensors(model):
    """A copy of the state dict as NumPy arrays."""
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def evaluate(model, images):
    """Logits of `images [n, h, w, c]` in evaluation mode."""
    with torch.no_grad():
        return model.eval()(_nchw(images)).numpy()


def train_step(model, images, labels, *, learning_rate):
    """One step of SGD on the cross-entropy of `images [n, h, w, c]`; returns the training-mode logits."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    logits = model.train()(_nchw(images))
    functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    optimizer.step()
    return logits.detach().numpy()


def _nchw(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
