"""What the official LVLM-DFD and ImageBind compute, stated anew as plain functions of a state.

Written from their descriptions and shapes, without any module of ours, so that an error in a name,
an order or an epsilon shows.
"""

import math
import re

import torch
import torch.nn.functional as F

SIDE = 224
TOWERS = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": SIDE, "layers": 3, "width": 32, "head_width": 16, "patch_size": 56
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
}  # fmt: skip
VISION_HEADS, TEXT_HEADS = 2, 3


def imagebind_state(
    model: dict = TOWERS, rank: int | None = None, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random weights under ImageBind's names; with a rank, the fork's LoRA beside them."""
    vision, text, out = model["vision_cfg"], model["text_cfg"], model["embed_dim"]
    wide, narrow, patch = vision["width"], text["width"], vision["patch_size"]
    tokens = 1 + (vision["image_size"] // patch) ** 2
    shapes = {
        "modality_preprocessors.vision.cls_token": (1, 1, wide),
        "modality_preprocessors.vision.pos_embedding_helper.pos_embed": (1, tokens, wide),
        "modality_preprocessors.vision.rgbt_stem.proj.1.weight": (wide, 3, 2, patch, patch),
        "modality_preprocessors.text.token_embedding.weight": (text["vocab_size"], narrow),
        "modality_preprocessors.text.pos_embed": (1, text["context_length"], narrow),
        "modality_preprocessors.text.mask": (text["context_length"], text["context_length"]),
        "modality_preprocessors.audio.cls_token": (1, 1, 8),
        "modality_trunks.vision.pre_transformer_layer.0.weight": (wide,),
        "modality_trunks.vision.pre_transformer_layer.0.bias": (wide,),
        "modality_heads.vision.0.weight": (wide,),
        "modality_heads.vision.0.bias": (wide,),
        "modality_heads.vision.2.weight": (out, wide),
        "modality_heads.text.proj.0.weight": (narrow,),
        "modality_heads.text.proj.0.bias": (narrow,),
        "modality_heads.text.proj.1.weight": (out, narrow),
        "modality_postprocessors.text.1.log_logit_scale": (),
        "modality_postprocessors.audio.1.log_logit_scale": (),
    }
    for sense, width, layers in (
        ("vision", wide, vision["layers"]), ("text", narrow, text["layers"])
    ):  # fmt: skip
        for i in range(layers):
            stem = f"modality_trunks.{sense}.blocks.{i}"
            shapes |= {
                f"{stem}.attn.in_proj_weight": (3 * width, width),
                f"{stem}.attn.in_proj_bias": (3 * width,),
                f"{stem}.attn.out_proj.weight": (width, width),
                f"{stem}.attn.out_proj.bias": (width,),
                f"{stem}.mlp.fc1.weight": (4 * width, width),
                f"{stem}.mlp.fc1.bias": (4 * width,),
                f"{stem}.mlp.fc2.weight": (width, 4 * width),
                f"{stem}.mlp.fc2.bias": (width,),
                **{f"{stem}.norm_{n}.{p}": (width,) for n in (1, 2) for p in ("weight", "bias")},
            }
    heads = ("modality_heads.vision.2.weight", "modality_heads.text.proj.1.weight")
    for name, shape in list(shapes.items()) if rank is not None else ():
        if name in heads or re.search(r"\.mlp\.fc[12]\.weight$", name):
            stem = name.removesuffix("weight")
            shapes[f"{stem}lora_A"] = (rank, shape[1])
            shapes[f"{stem}lora_B"] = (shape[0], rank)
    state = _random(shapes, seed)
    state["modality_postprocessors.text.1.log_logit_scale"] = torch.tensor(math.log(14.0))
    return state


def _random(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 25
        spread = 1.0 if "lora" in name else 1 / math.sqrt(fan_in)
        state[name] = spread * torch.randn(shape, generator=generator)
        if "norm" in name and name.endswith(("weight", "running_var")):
            state[name] = 1 + 0.1 * state[name]
    return state


def image_features(
    state: dict[str, torch.Tensor], images: torch.Tensor, taps: tuple[int, ...]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Tokens (B, 1 + N, C) after the tapped blocks, and the embedding (B, C_out).

    Args:
        state: ImageBind's.
        images: (B, 3, H, W), normalised.
        taps: Counted from 1.
    """
    before = "modality_preprocessors.vision"
    kernel = state[f"{before}.rgbt_stem.proj.1.weight"]
    video = torch.stack([images, images], dim=2)
    patches = F.conv3d(video, kernel, stride=kernel.shape[2:]).flatten(2).transpose(1, 2)
    token = state[f"{before}.cls_token"].expand(len(images), -1, -1)
    x = torch.cat([token, patches], dim=1) + state[f"{before}.pos_embedding_helper.pos_embed"]
    x = _norm(state, "modality_trunks.vision.pre_transformer_layer.0", x)
    tapped = []
    for i in range(taps[-1]):
        x = _block(state, f"modality_trunks.vision.blocks.{i}", x, VISION_HEADS)
        if i + 1 in taps:
            tapped.append(x)
    pooled = _norm(state, "modality_heads.vision.0", x)[:, 0]
    return tapped, F.normalize(_linear(state, "modality_heads.vision.2", pooled), dim=-1)


def text_features(state: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Embeddings (N, C_out) of token ids (N, T), each as long as the logit scale."""
    before = "modality_preprocessors.text"
    x = state[f"{before}.token_embedding.weight"][tokens] + state[f"{before}.pos_embed"]
    mask = torch.full((x.shape[1], x.shape[1]), -math.inf).triu(1)
    layers = sum(n.startswith("modality_trunks.text") and "norm_1.bias" in n for n in state)
    for i in range(layers):
        x = _block(state, f"modality_trunks.text.blocks.{i}", x, TEXT_HEADS, mask)
    x = x[torch.arange(len(x)), tokens.argmax(dim=-1)]
    x = _linear(state, "modality_heads.text.proj.1", _norm(state, "modality_heads.text.proj.0", x))
    scale = state["modality_postprocessors.text.1.log_logit_scale"].exp().clamp(max=100)
    return scale * F.normalize(x, dim=-1)


def _norm(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def _linear(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """A linear layer; with loralib's factors beside it, their update is added unmerged."""
    y = F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))
    if f"{name}.lora_A" in state:
        down, up = state[f"{name}.lora_A"], state[f"{name}.lora_B"]
        y = y + (x @ down.T @ up.T) / len(down)
    return y


def _block(
    state: dict[str, torch.Tensor],
    name: str,
    x: torch.Tensor,
    heads: int,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    y = _norm(state, f"{name}.norm_1", x)
    y = F.linear(y, state[f"{name}.attn.in_proj_weight"], state[f"{name}.attn.in_proj_bias"])
    q, k, v = y.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    weights = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        weights = weights + mask
    y = (weights.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    x = x + _linear(state, f"{name}.attn.out_proj", y)
    y = _linear(state, f"{name}.mlp.fc1", _norm(state, f"{name}.norm_2", x))
    return x + _linear(state, f"{name}.mlp.fc2", F.gelu(y))


def lvlm_dfd_state(
    vision: int = 32,
    text: int = 24,
    width: int = 40,
    layers: int = 2,
    rank: int = 4,
    taps: int = 3,
    seed: int = 1,
) -> dict[str, torch.Tensor]:
    """Random weights under the official names, without ImageBind's.

    Args:
        vision: Width of the image tower.
        text: Width of its embeddings.
        width: Of the language model.
        layers: Its blocks.
        rank: Of its LoRA.
        taps: Layers of the image tower that are read.
        seed: Of the weights.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, inner: int, *kernel: int) -> None:
        shapes.update({f"{name}.weight": (out, inner, *kernel), f"{name}.bias": (out,)})

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()

    for i in range(taps):
        conv(f"image_decoder.fc.{i}", text, vision)
        conv(f"locator.conv.{i}", 128, 2, 3, 3)
        norm(f"locator.batchnorm.{i}", 128)
        for j, (inner, out) in enumerate(((2, 16), (16, 64), (64, 128), (128, 256))):
            conv(f"classifier.meta_net.{i}.{4 * j}", out, inner, 3, 3)
            norm(f"classifier.meta_net.{i}.{4 * j + 3}", out)
    conv("locator.finalconv", 2, 128 * taps, 3, 3)
    conv("classifier.fc1", 128, 256 * taps)
    conv("classifier.fc2", 2, 128)
    for name, channels in (("meta_net1", 2 * taps), ("meta_net2", 1)):
        inner = channels
        for j, out in enumerate((16, 32, 64, 128, 256, 512)):
            conv(f"prompt_learner.{name}.{4 * j}", out, inner, 3, 3)
            norm(f"prompt_learner.{name}.{4 * j + 2}", out)
            inner = out
        conv(f"prompt_learner.{name}.23", width, 512, 5, 5)
    conv("prompt_learner.fc", width, 2)
    conv("prompt_learner.finalconv", 9, 28, 3)
    shapes["prompt_learner.base_prompts"] = (9, width)
    conv("llama_proj", width, text)
    for i in range(layers):
        for projection in "qkvo":
            stem = f"llama_model.base_model.model.model.layers.{i}.self_attn.{projection}_proj"
            shapes[f"{stem}.lora_A.default.weight"] = (rank, width)
            shapes[f"{stem}.lora_B.default.weight"] = (width, rank)
    state = _random(shapes, seed)
    for name in state:
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = 1 + state[name].abs()
    return state


def detect(
    state: dict[str, torch.Tensor], tokens: list[torch.Tensor], words: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Consistency maps (B, L, 2, h, w), mask (B, 1, 224, 224) and probabilities (B, 2).

    Args:
        state: The official one.
        tokens: For each tap (B, 1 + N, C).
        words: Text embeddings of [real, fake], each (n, C_out); averaged as they are.
    """
    text = torch.stack([F.normalize(w.mean(dim=0), dim=-1) for w in words])
    small, large = [], []
    for i, x in enumerate(tokens):
        y = F.linear(
            x[:, 1:], state[f"image_decoder.fc.{i}.weight"], state[f"image_decoder.fc.{i}.bias"]
        )
        maps = 100 * (y / y.norm(dim=-1, keepdim=True)) @ text.T
        grid = math.isqrt(maps.shape[1])
        small.append(maps.transpose(1, 2).unflatten(2, (grid, grid)))
        large.append(F.interpolate(small[-1], size=SIDE, mode="bilinear", align_corners=True))
    located, seen = [], []
    for i, maps in enumerate(large):
        y = _conv(state, f"locator.conv.{i}", maps, padding=2).relu()
        located.append(_batch_norm(state, f"locator.batchnorm.{i}", y))
        y = maps
        for j in range(4):
            y = _conv(state, f"classifier.meta_net.{i}.{4 * j}", y, padding=1).relu()
            y = _batch_norm(state, f"classifier.meta_net.{i}.{4 * j + 3}", F.max_pool2d(y, 2))
        seen.append(y.mean(dim=(2, 3)))
    mask = _conv(state, "locator.finalconv", torch.cat(located, dim=1)).softmax(dim=1)[:, 1:]
    y = torch.cat(seen, dim=1)
    for name in ("classifier.fc1", "classifier.fc2"):
        y = F.linear(y, state[f"{name}.weight"], state[f"{name}.bias"])
        y = y.relu() if name.endswith("fc1") else y.softmax(dim=1)
    return torch.stack(small, dim=1), mask, y


def learn_prompts(
    state: dict[str, torch.Tensor],
    maps: torch.Tensor,
    mask: torch.Tensor,
    probabilities: torch.Tensor,
) -> torch.Tensor:
    """E_forgery (B, 9, C) of what :func:`detect` gave."""
    large = F.interpolate(maps.flatten(1, 2), size=SIDE, mode="bilinear", align_corners=True)
    vectors = [state["prompt_learner.base_prompts"].expand(len(maps), -1, -1)]
    for name, x in (("meta_net1", large), ("meta_net2", mask)):
        for j in range(6):
            x = _conv(state, f"prompt_learner.{name}.{4 * j}", x, padding=1).relu()
            x = _batch_norm(state, f"prompt_learner.{name}.{4 * j + 2}", x)
            if j < 5:
                x = F.max_pool2d(x, 2)
        x = _conv(state, f"prompt_learner.{name}.23", x)
        vectors.append(x.flatten(2).transpose(1, 2))
    score = F.linear(
        probabilities, state["prompt_learner.fc.weight"], state["prompt_learner.fc.bias"]
    )
    fused = torch.cat([*vectors, score[:, None]], dim=1)
    weight, bias = (state[f"prompt_learner.finalconv.{p}"] for p in ("weight", "bias"))
    return F.conv1d(fused, weight, bias, padding=1)


def _conv(
    state: dict[str, torch.Tensor], name: str, x: torch.Tensor, padding: int = 0
) -> torch.Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)


def _batch_norm(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    mean, variance, weight, bias = (
        state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, variance, weight, bias)
