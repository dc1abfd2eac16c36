"""What the detector and the FPL cost at the paper's sizes, part by part, with random weights.

    python scripts/bench_kfd.py [--parts heads,fpl,trunk,text] [--batches 1,4,16] [--threads 2]
    python scripts/bench_kfd.py --memory [--dtypes bfloat16]

The first form prints milliseconds for each part, batch size, precision and device: a GPU, if there
is one, beside the CPU. ``official`` is the official code's computation stated anew here, so that
the ratios are of one run; the last column is what the official code itself took in another run (two
CPU threads, float32) and is no measurement of this one. Beside the time that passed stands, on CPU,
the time that the process was busy: other work on the machine leaves it nearly as it is.

The second form builds the preset ``paper`` as a user would, judges one image, and prints the peak
of this process's memory; run it by itself.
"""

import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Annotated

import open_clip
import torch
import torch.nn.functional as F
import typer
from bench_timing import measure
from torch import nn

from llava_forgery.cli.app import run
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.kfd.config import PRESETS, EncoderConfig
from llava_forgery.kfd.consistency import ConsistencyMaps
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.encoder import OpenClipEncoder
from llava_forgery.kfd.heads import make_heads
from llava_forgery.kfd.knowledge import ForgeryKnowledge, OpenClipTextEncoder

PARTS = ("heads", "fpl", "trunk", "text")
SIDE, GRID, LAYERS, WIDTH, TEXT_WIDTH = 224, 16, 3, 1280, 1024
# Milliseconds at batch 1 and 4 of botianzhe/LVLM-DFD at 589b036: another run, float32, two threads
# of a machine like the developers'.
REFERENCE = {
    "trunk": {1: 3181, 4: 9683},
    "heads": {1: 398, 4: 806},
    "fpl": {1: 422, 4: 461},
    "text": {1: 3222, 4: 3222},
}

Variants = dict[str, Callable[[], object]]


def main(
    parts: Annotated[
        str, typer.Option(help="Of heads, fpl, trunk, text.")
    ] = "heads,fpl,trunk,text",
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1,4,16",
    dtypes: Annotated[str, typer.Option(help="float32, bfloat16.")] = "float32,bfloat16",
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: both where there are both.")
    ] = None,
    hidden_size: Annotated[int, typer.Option(help="Width of the language model.")] = 4096,
    rounds: Annotated[int, typer.Option(help="Runs of each variant.")] = 5,
    warm_up: Annotated[int, typer.Option(help="Runs before them that do not count.")] = 1,
    threads: Annotated[int | None, typer.Option(help="torch's CPU threads.")] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A tiny tower, to see that it runs.")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Peak memory of the preset paper at batch 1.")
    ] = False,
) -> None:
    """Print the table."""
    if threads is not None:
        torch.set_num_threads(threads)
    wanted = parts.split(",")
    if not set(wanted) <= set(PARTS):
        raise ValueError(f"--parts must be of {', '.join(PARTS)}, got {parts!r}")
    kinds = [getattr(torch, name) for name in dtypes.split(",")]
    if memory:
        measure_memory(kinds[-1] if dtypes != "float32,bfloat16" else torch.bfloat16, tiny)
        return
    devices = [device] if device else ["cpu"] + ["cuda"] * torch.cuda.is_available()
    print(f"{torch.get_num_threads()} CPU threads, median of {rounds}, random weights\n")
    print(
        f"{'':<28}{'device':<6}{'dtype':<10}{'batch':>5}{'ms':>10}{'ms/image':>10}{'ratio':>7}"
        f"{'busy ms':>10}{'ratio':>7}{'official, another run':>23}"
    )
    for part in wanted:
        for place in devices:
            for dtype in kinds:
                # Built for each precision and dropped before the next, so never two towers at once.
                bench = BENCHES[part](torch.device(place), dtype, hidden_size, tiny)
                for batch in [1] if part == "text" else map(int, batches.split(",")):
                    with torch.inference_mode():
                        times = measure(bench(batch), rounds, warm_up, torch.device(place))
                    print_rows(part, times, place, dtype, batch)
                del bench
    print(
        "\ntext: the two features are computed when training ends and kept with the detector, so "
        "at inference it takes 0 ms."
        f"\npeak memory of this process: {peak_gigabytes():.2f} GB"
    )


def heads(
    device: torch.device, dtype: torch.dtype, hidden_size: int, tiny: bool
) -> Callable[[int], Variants]:
    """Linear layers, maps, locator and classifier, on the tower's features."""
    print_parameters(
        "heads",
        {"official": OfficialHeads(), **{kind: our_heads(kind) for kind in ("paper", "lite")}},
    )
    official = settled(OfficialHeads(), device, dtype)
    ours = {kind: settled(our_heads(kind), device, dtype) for kind in ("paper", "lite")}

    def variants(batch: int) -> Variants:
        tokens = [random((batch, 1 + GRID**2, WIDTH), device, dtype) for _ in range(LAYERS)]
        text = F.normalize(random((2, TEXT_WIDTH), device, dtype), dim=-1)
        features = [t[:, 1:].transpose(1, 2).unflatten(2, (GRID, GRID)).clone() for t in tokens]
        made = {"official": lambda: official(tokens, text)}
        for kind, detector in ours.items():
            detector.text_features = text
            made[kind] = lambda detector=detector: detector.read_features(features)
        return made

    return variants


def fpl(
    device: torch.device, dtype: torch.dtype, hidden_size: int, tiny: bool
) -> Callable[[int], Variants]:
    """The Forgery Prompt Learner."""
    made = {
        "official": OfficialLearner(hidden_size),
        "paper": ForgeryPromptLearner(FPLConfig(hidden_size, LAYERS, "paper")),
        "lite": ForgeryPromptLearner(FPLConfig(hidden_size, LAYERS, "lite")),
    }
    print_parameters("fpl", made)
    made = {name: settled(module, device, dtype) for name, module in made.items()}

    def variants(batch: int) -> Variants:
        maps = random((batch, LAYERS, 2, GRID, GRID), device, dtype)
        seen = KFDOutput(
            maps,
            random((batch, 2, SIDE, SIDE), device, torch.float32),
            random((batch, 2), device, torch.float32),
        )
        # What the official heads hand over: maps of the image's size.
        large = F.interpolate(maps.flatten(1, 2), (SIDE, SIDE), mode="bilinear")
        mask, score = seen.mask.to(dtype), seen.class_logits.softmax(dim=1).to(dtype)
        return {
            "official": lambda: made["official"](large, mask, score),
            **{kind: lambda kind=kind: made[kind](seen) for kind in ("paper", "lite")},
        }

    return variants


def trunk(
    device: torch.device, dtype: torch.dtype, hidden_size: int, tiny: bool
) -> Callable[[int], Variants]:
    """The image tower up to its last tap."""
    model = towers(tiny)
    # Only this tower is made real.
    model.transformer = model.token_embedding = None
    visual = model.visual.to(dtype).to_empty(device=device)
    fill(visual)
    config = encoder_config(tiny)
    encoder = OpenClipEncoder(model, config).to(device)

    def variants(batch: int) -> Variants:
        images = random((batch, 3, config.image_size, config.image_size), device, torch.float32)
        return {"ours": lambda: encoder(images)}

    return variants


def text(
    device: torch.device, dtype: torch.dtype, hidden_size: int, tiny: bool
) -> Callable[[int], Variants]:
    """Both text features from their descriptions: once, when the detector leaves training."""
    model = towers(tiny)
    model.visual = None
    model = model.to(dtype).to_empty(device=device)
    fill(model)
    # A buffer that is no weight.
    model.attn_mask = torch.full_like(model.attn_mask, -math.inf).triu(1)
    encoder = OpenClipTextEncoder(model, "ViT-H-14")
    config = replace(PRESETS["paper"], encoder=encoder_config(tiny))
    knowledge = ForgeryKnowledge(config, encoder).to(device)
    return lambda batch: {"ours, once": knowledge}


BENCHES = {"heads": heads, "fpl": fpl, "trunk": trunk, "text": text}


class OfficialHeads(nn.Module):
    """Linear layers, maps of the image's size, locator and classifier, as in the official code."""

    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(WIDTH, TEXT_WIDTH) for _ in range(LAYERS))
        self.locators = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2, 128, 3, padding=2), nn.ReLU(), nn.BatchNorm2d(128))
            for _ in range(LAYERS)
        )
        self.locate = nn.Conv2d(128 * LAYERS, 2, 3)
        self.classifiers = nn.ModuleList(
            nn.Sequential(*_stages((2, 16, 64, 128, 256), pool_first=True), nn.AdaptiveAvgPool2d(1))
            for _ in range(LAYERS)
        )
        self.fc = nn.Sequential(nn.Linear(256 * LAYERS, 128), nn.ReLU(), nn.Linear(128, 2))

    def forward(self, tokens: list[torch.Tensor], text: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tokens (B, 257, 1280) for each tap and text (2, 1024) to maps, mask and score."""
        maps = []
        for linear, layer in zip(self.linears, tokens, strict=True):
            patches = linear(layer[:, 1:])
            patches = patches / patches.norm(dim=-1, keepdim=True)
            similar = (100.0 * patches @ text.T).transpose(1, 2).unflatten(2, (GRID, GRID))
            large = F.interpolate(
                similar.float(), (SIDE, SIDE), mode="bilinear", align_corners=True
            )
            maps.append(large.to(text.dtype))
        located = [branch(m) for branch, m in zip(self.locators, maps, strict=True)]
        seen = [branch(m).flatten(1) for branch, m in zip(self.classifiers, maps, strict=True)]
        mask = self.locate(torch.cat(located, dim=1)).softmax(dim=1)
        return torch.cat(maps, dim=1), mask, self.fc(torch.cat(seen, dim=1)).softmax(dim=1)


class OfficialLearner(nn.Module):
    """The Forgery Prompt Learner as the official code has it."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        widths = (16, 32, 64, 128, 256)
        self.nets = nn.ModuleList(
            nn.Sequential(
                *_stages((channels, *widths), pool_first=False),
                nn.Conv2d(256, 512, 3, padding=1),
                nn.ReLU(),
                nn.BatchNorm2d(512),
                nn.Conv2d(512, hidden_size, 5),
            )
            for channels in (2 * LAYERS, 1)
        )
        self.base = nn.Parameter(torch.randn(9, hidden_size))
        self.score = nn.Linear(2, hidden_size)
        self.fuse = nn.Conv1d(28, 9, 3, padding=1)

    def forward(self, maps: torch.Tensor, mask: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """Maps (B, 6, 224, 224), mask (B, 1, 224, 224), score (B, 2) to (B, 9, C)."""
        inputs = zip(self.nets, (maps, mask), strict=True)
        vectors = [net(x).flatten(2).transpose(1, 2) for net, x in inputs]
        base = self.base.expand(len(maps), -1, -1)
        return self.fuse(torch.cat([base, *vectors, self.score(score)[:, None]], dim=1))


def _stages(widths: tuple[int, ...], pool_first: bool) -> Iterator[nn.Module]:
    """Convolution, ReLU, pooling by two and batch norm, in the order of classifier or learner."""
    for before, after in pairwise(widths):
        tail = [nn.MaxPool2d(2), nn.BatchNorm2d(after)]
        yield from (nn.Conv2d(before, after, 3, padding=1), nn.ReLU())
        yield from tail if pool_first else reversed(tail)


def our_heads(kind: str) -> KnowledgeGuidedForgeryDetector:
    """A detector without an encoder: what reads the tower's features."""
    detector = KnowledgeGuidedForgeryDetector.__new__(KnowledgeGuidedForgeryDetector)
    nn.Module.__init__(detector)
    detector.config, detector.knowledge = replace(PRESETS["paper"], heads=kind), None
    detector.consistency = ConsistencyMaps([WIDTH] * LAYERS, TEXT_WIDTH, 100.0)
    detector.locator, detector.classifier = make_heads(kind, LAYERS)
    return detector


def encoder_config(tiny: bool) -> EncoderConfig:
    """The preset's, without pretrained weights."""
    if tiny:
        return EncoderConfig("open_clip", "ViT-H-14", None, (1, 2, 3), 64, 32)
    return replace(PRESETS["paper"].encoder, pretrained=None)


def towers(tiny: bool) -> nn.Module:
    """Both towers without memory of their own."""
    config = open_clip.get_model_config("ViT-H-14")
    if tiny:
        config["embed_dim"] = 64
        config["vision_cfg"] |= {"image_size": 32, "layers": 3, "width": 32, "head_width": 16,
                                 "patch_size": 8}  # fmt: skip
        config["text_cfg"] |= {"width": 32, "heads": 2, "layers": 2}
    with torch.device("meta"):
        model = open_clip.CLIP(**config).eval()
    # What open_clip's factory adds.
    model.visual.image_mean = open_clip.OPENAI_DATASET_MEAN
    model.visual.image_std = open_clip.OPENAI_DATASET_STD
    return model


def settled(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """In eval mode, on its device."""
    return module.eval().requires_grad_(False).to(device, dtype)


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Small random weights; norms begin with one."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.uniform_(-0.03, 0.03)
        else:
            parameter.fill_(float("ln_" in name and name.endswith("weight")))


def random(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Normal numbers."""
    return torch.randn(shape, device=device).to(dtype)


def print_rows(
    part: str,
    times: dict[str, tuple[float, float]],
    device: str,
    dtype: torch.dtype,
    batch: int,
) -> None:
    """A line for each variant; ratios to the official computation of the same run."""
    official = times.get("official")
    for name, (passed, busy) in times.items():
        ratio, busy_ratio = (
            ("", "")
            if official is None
            else (f"{passed / official[0]:.3f}", f"{busy / official[1]:.3f}")
        )
        own = device == "cpu" and dtype == torch.float32
        reference = REFERENCE[part].get(batch) if own else None
        print(
            f"{part + ', ' + name:<28}{device:<6}{str(dtype).removeprefix('torch.'):<10}{batch:>5}"
            f"{1000 * passed:>10.1f}{1000 * passed / batch:>10.1f}{ratio:>7}"
            f"{1000 * busy:>10.1f}{busy_ratio:>7}{reference or '':>23}",
            flush=True,
        )


def print_parameters(part: str, modules: dict[str, nn.Module]) -> None:
    """Numbers of parameters, as shares of the official computation's."""
    counts = {n: sum(p.numel() for p in m.parameters()) for n, m in modules.items()}
    told = ", ".join(f"{n} {c:,} ({c / counts['official']:.3f})" for n, c in counts.items())
    print(f"{part}: parameters {told}")


def measure_memory(dtype: torch.dtype, tiny: bool) -> None:
    """Build the detector as a user would, in one precision, and judge an image."""
    config = replace(PRESETS["paper"], encoder=encoder_config(tiny))
    if tiny:
        raise ValueError("--memory is of the preset paper; leave --tiny out")
    before = peak_gigabytes()
    start = time.perf_counter()
    detector = KnowledgeGuidedForgeryDetector.from_config(
        config, dtype=dtype, with_knowledge=False
    ).eval()
    detector.text_features.normal_()
    built, took = peak_gigabytes(), time.perf_counter() - start
    with torch.inference_mode():
        detector(torch.rand(1, 3, SIDE, SIDE))
    held = sum(p.numel() * p.element_size() for p in detector.parameters()) / 1e9
    print(
        f"preset paper, {str(dtype).removeprefix('torch.')}, batch 1: weights {held:.2f} GB; peak "
        f"memory of the process {before:.2f} GB before, {built:.2f} GB when built ({took:.0f} s), "
        f"{peak_gigabytes():.2f} GB after an image"
    )


def peak_gigabytes() -> float:
    """Most memory that this process has held."""
    # Linux counts in units of 1024 bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    run(lambda: typer.run(main))
