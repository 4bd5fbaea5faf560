"""Other libraries' names of the tensors of this project's networks, which have torchvision's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]


def _rules(*pairs: tuple[str, str | Callable[[re.Match[str]], str]]) -> tuple[Rule, ...]:
    """Compiled rules; a pattern starts at the name's start, or after the dot of a prefix."""
    return tuple((re.compile(rf"(?:(?<=\.)|^){pattern}"), name) for pattern, name in pairs)


def _next(match: re.Match[str]) -> str:
    """PyTorch counts these from 1."""
    kind = {"convolution": "conv", "normalization": "bn"}[match[2]]
    return f"{kind}{int(match[1]) + 1}."


def _stage(template: str, *, times: int = 1, plus: int = 0) -> Callable[[re.Match[str]], str]:
    """`template` with the number of the stage, as torchvision counts it, and the other matched groups."""
    return lambda match: template.format(times * int(match[1]) + plus, *match.groups()[1:])


# Names that torch.compile, FSDP, activation checkpoints and DataParallel put between a module and its child.
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|(?<=\.)module)\.")
_OF_A_LAYER = "encoder.layers.encoder_layer_"

# Tensors outside the layers, in all versions of transformers' vision transformers.
_OF_TRANSFORMERS = (
    (r"(?:vit\.)?embeddings\.cls_token$", "class_token"),
    (r"(?:vit\.)?embeddings\.position_embeddings$", "encoder.pos_embedding"),
    (r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.", "conv_proj."),
    (r"(?:vit\.)?layernorm\.", "encoder.ln."),
    (r"classifier\.(weight|bias)$", r"heads.head.\1"),
)

SPELLINGS: Sequence[tuple[Rule, ...]] = (
    _rules(  # torchvision itself, and before 0.3 (DenseNet) and 0.14 (vision transformers)
        (r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),
        (r"mlp\.linear_1\.", r"mlp.0."),
        (r"mlp\.linear_2\.", r"mlp.3."),
    ),
    _rules((r"shortcut\.", "downsample."), (r"linear\.", "fc.")),  # pytorch-cifar, BackdoorBox
    _rules(  # timm's vision transformers
        (r"cls_token$", "class_token"),
        (r"pos_embed$", "encoder.pos_embedding"),
        (r"patch_embed\.proj\.", "conv_proj."),
        (r"blocks\.(\d+)\.norm([12])\.", rf"{_OF_A_LAYER}\1.ln_\2."),
        (r"blocks\.(\d+)\.attn\.qkv\.", rf"{_OF_A_LAYER}\1.self_attention.in_proj_"),
        (r"blocks\.(\d+)\.attn\.proj\.", rf"{_OF_A_LAYER}\1.self_attention.out_proj."),
        (r"blocks\.(\d+)\.mlp\.fc1\.", rf"{_OF_A_LAYER}\1.mlp.0."),
        (r"blocks\.(\d+)\.mlp\.fc2\.", rf"{_OF_A_LAYER}\1.mlp.3."),
        (r"norm\.(weight|bias)$", r"encoder.ln.\1"),
        (r"head\.(weight|bias)$", r"heads.head.\1"),
    ),
    _rules(  # transformers' vision transformers
        *_OF_TRANSFORMERS,
        (r"(?:vit\.)?encoder\.layer\.(\d+)\.attention\.attention\.qkv\.", rf"{_OF_A_LAYER}\1.self_attention.in_proj_"),
        (r"(?:vit\.)?encoder\.layer\.(\d+)\.attention\.output\.dense\.", rf"{_OF_A_LAYER}\1.self_attention.out_proj."),
        (r"(?:vit\.)?encoder\.layer\.(\d+)\.layernorm_before\.", rf"{_OF_A_LAYER}\1.ln_1."),
        (r"(?:vit\.)?encoder\.layer\.(\d+)\.layernorm_after\.", rf"{_OF_A_LAYER}\1.ln_2."),
        (r"(?:vit\.)?encoder\.layer\.(\d+)\.intermediate\.dense\.", rf"{_OF_A_LAYER}\1.mlp.0."),
        (r"(?:vit\.)?encoder\.layer\.(\d+)\.output\.dense\.", rf"{_OF_A_LAYER}\1.mlp.3."),
    ),
    _rules(  # the same, since version 5
        *_OF_TRANSFORMERS,
        (r"(?:vit\.)?layers\.(\d+)\.", rf"{_OF_A_LAYER}\1."),
        (r"attention\.qkv\.", "self_attention.in_proj_"),
        (r"attention\.o_proj\.", "self_attention.out_proj."),
        (r"layernorm_before\.", "ln_1."),
        (r"layernorm_after\.", "ln_2."),
        (r"mlp\.fc1\.", "mlp.0."),
        (r"mlp\.fc2\.", "mlp.3."),
    ),
    _rules(  # transformers' ResNets
        (r"(?:resnet\.)?embedder\.embedder\.convolution\.", "conv1."),
        (r"(?:resnet\.)?embedder\.embedder\.normalization\.", "bn1."),
        (r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.", _stage("layer{0}.{1}.", plus=1)),
        (r"shortcut\.convolution\.", "downsample.0."),
        (r"shortcut\.normalization\.", "downsample.1."),
        (r"layer\.(\d+)\.(convolution|normalization)\.", _next),
        (r"classifier\.1\.", "fc."),
    ),
    _rules(  # timm's ConvNeXts
        (r"stem\.", "features.0."),
        (r"stages\.(\d+)\.downsample\.", _stage("features.{0}.", times=2)),
        (r"stages\.(\d+)\.blocks\.(\d+)\.", _stage("features.{0}.{1}.", times=2, plus=1)),
        (r"conv_dw\.", "block.0."),
        (r"(features\.\d+\.\d+\.)norm\.", r"\1block.2."),
        (r"mlp\.fc1\.", "block.3."),
        (r"mlp\.fc2\.", "block.5."),
        (r"gamma$", "layer_scale"),
        (r"head\.norm\.", "classifier.0."),
        (r"head\.fc\.", "classifier.2."),
    ),
    _rules(  # transformers' ConvNeXts
        (r"(?:convnext\.)?embeddings\.patch_embeddings\.", "features.0.0."),
        (r"(?:convnext\.)?embeddings\.layernorm\.", "features.0.1."),
        (r"(?:convnext\.)?encoder\.stages\.(\d+)\.downsampling_layer\.", _stage("features.{0}.", times=2)),
        (r"(?:convnext\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.", _stage("features.{0}.{1}.", times=2, plus=1)),
        (r"dwconv\.", "block.0."),
        (r"(features\.\d+\.\d+\.)layernorm\.", r"\1block.2."),
        (r"pwconv1\.", "block.3."),
        (r"pwconv2\.", "block.5."),
        (r"layer_scale_parameter$", "layer_scale"),
        (r"(?:convnext\.)?layernorm\.", "classifier.0."),
        (r"classifier\.(weight|bias)$", r"classifier.2.\1"),
    ),
)
"""Rules by library, applied in order; the first are tried first."""


def respell(names: Iterable[str], rules: Sequence[Rule]) -> dict[str, str]:
    """Each name with its torchvision spelling."""
    modern = {}
    for name in names:
        spelled = _WRAPPERS.sub("", name)
        for pattern, new in rules:
            spelled = pattern.sub(new, spelled)
        modern[name] = spelled
    return modern
