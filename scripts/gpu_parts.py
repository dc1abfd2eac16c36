"""The parts of scripts/gpu_check.py that call models, and what all of them share.

Each imports what it needs by itself: without a package only the parts that use it fail.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
SAMPLES, LANDMARKS = ROOT / "samples", ROOT / "samples" / "landmarks.json"
# A float32 sum in another order; the paper's maps are similarities times 100.
TOLERANCES = {"score": 1e-3, "mask": 1e-3, "consistency_maps": 2e-2}
GREY_LEVELS, GREY_SHARE = 3, 0.999


@dataclass
class Setting:
    """How the parts run."""

    device: str
    tiny: bool
    out: Path
    """Gets ``PART.jsonl``."""
    minutes: float = 0.0
    """Of training."""
    faces: Path | None = None
    """Prepared faces to train on."""
    real: Path | None = None
    """Crops of real and forged videos to measure on."""
    _file: Any = field(default=None, repr=False)

    @property
    def place(self) -> torch.device:
        """Where to measure."""
        return torch.device(self.device)

    def report(
        self, what: str, value: float | bool, unit: str = "", goal: str = "", met: bool = True
    ) -> None:
        """Write a figure down at once."""
        row = {"what": what, "value": value, "unit": unit, "goal": goal, "met": bool(met)}
        print(row, flush=True)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def sample_faces() -> Iterator[Any]:
    """Sixteen photographs of samples/ with their landmarks."""
    from llava_forgery.faces.records import FaceCrop
    from llava_forgery.images import read_image

    for name, points in json.loads(LANDMARKS.read_text()).items():
        image = np.asarray(read_image(SAMPLES / name))
        stem = Path(name).stem
        yield FaceCrop(
            image=image,
            landmarks=np.array(points, np.float32),
            box=(0.0, 0.0, float(image.shape[1]), float(image.shape[0])),
            video_id=stem,
            identity=stem.split("_")[0],
            label=0,
            source=name,
            split="train",
        )


def seconds_of(call: Callable[[], object], place: torch.device, rounds: int) -> float:
    """Median seconds of a call; the first one warms up."""
    return statistics.median([_once(call, place) for _ in range(rounds + 1)][1:])


def _once(call: Callable[[], object], place: torch.device) -> float:
    _wait(place)
    start = time.perf_counter()
    call()
    _wait(place)
    return time.perf_counter() - start


def _wait(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def _detector(preset: str, tiny: bool) -> torch.nn.Module:
    """A detector of random weights: the preset's sizes, or tiny ones."""
    from llava_forgery.kfd.config import PRESETS, EncoderConfig
    from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector

    config = PRESETS[preset]
    if config.encoder.kind == "open_clip":
        if tiny:
            small = EncoderConfig("open_clip", "ViT-B-32", None, (1, 2, 3), 64, 512)
            config = replace(config, encoder=replace(small, image_size=224))
        else:
            config = replace(config, encoder=replace(config.encoder, pretrained=None))
    detector = KnowledgeGuidedForgeryDetector.from_config(config, 0, with_knowledge=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        detector.text_features.normal_()
    return detector.eval()


def equality(setting: Setting) -> None:
    """The GPU computes what the CPU does."""
    from llava_forgery.fpl.config import FPLConfig
    from llava_forgery.fpl.learner import ForgeryPromptLearner

    place = setting.place
    for preset in ("tiny", "paper"):
        detector = _detector(preset, setting.tiny)
        side = detector.config.encoder.image_size
        images = torch.rand(2, 3, side, side)
        with torch.no_grad():
            here = detector(images)
            there = detector.to(place)(images.to(place))
            again = detector(images.to(place))
        for name, tolerance in TOLERANCES.items():
            apart = float((getattr(here, name) - getattr(there, name).cpu()).abs().max())
            setting.report(
                f"detector {preset}, {name}: largest difference from the CPU", apart, "",
                f"at most {tolerance:g}", apart <= tolerance,
            )  # fmt: skip
        same = all(torch.equal(getattr(there, n), getattr(again, n)) for n in ("score", "mask"))
        setting.report(f"detector {preset}: a second run has the same bits", same, "", "true", same)
        width = 64 if setting.tiny else 4096
        for kind in ("lite", "paper"):
            learner = ForgeryPromptLearner.from_config(
                FPLConfig(width, here.consistency_maps.shape[1], kind)
            ).eval()
            with torch.no_grad():
                expected = learner(here)
                got = learner.to(place)(
                    type(here)(*(t.to(place) for t in (
                        here.consistency_maps, here.mask_logits, here.class_logits)))
                )  # fmt: skip
            apart = float((expected - got.cpu()).norm() / expected.norm())
            setting.report(
                f"FPL {kind} on {preset}'s maps: difference from the CPU, of the norm", apart, "",
                "at most 0.001", apart <= 1e-3,
            )  # fmt: skip
    _renderer_equality(setting)


def _renderer_equality(setting: Setting) -> None:
    from llava_forgery.simulate.config import SimulatorConfig
    from llava_forgery.simulate.pairs import CENTRED, frame_face
    from llava_forgery.simulate.simulator import ForgerySimulator

    framed = [frame_face(face, 224, CENTRED) for face in sample_faces()]
    images = np.stack([image for image, _ in framed])
    points = np.stack([landmarks for _, landmarks in framed])
    seeds = list(range(len(framed)))
    simulator = ForgerySimulator(SimulatorConfig(), "torch")
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(setting.place)
    made = simulator.forge_on_device(pictures, points, seeds)
    again = simulator.forge_on_device(pictures, points, seeds)
    by_cpu = np.stack([f.image for f in simulator.forge_batch(list(images), list(points), seeds)])
    apart = np.abs(made.image.permute(0, 2, 3, 1).cpu().numpy().astype(int) - by_cpu)
    share = float((apart <= GREY_LEVELS).mean())
    setting.report(
        f"renderer: values within {GREY_LEVELS} grey levels of the CPU's", share, "",
        f"at least {GREY_SHARE}", share >= GREY_SHARE,
    )  # fmt: skip
    same = torch.equal(made.image, again.image) and torch.equal(made.mask, again.mask)
    setting.report("renderer: one seed gives the same bytes", same, "", "true", same)


def host(setting: Setting) -> None:
    """LLaVA-1.5-7B's sizes with random weights: prefill, turns, training steps, peak memory."""
    import bench_host_tower as prefill

    sizes, layers, dtype = _host_sizes(setting)
    rounds = 1 if setting.tiny else 5
    with torch.inference_mode():
        variants = prefill.build(sizes, layers, setting.place, dtype)
        times = prefill.measure(variants, rounds, 1, setting.place)
    bare = next(iter(times.values()))[0]
    for name, (passed, _) in times.items():
        setting.report(f"prefill, {name.strip()}", 1000 * passed, "ms")
    shared = times["skill, the host's tower shared"][0] / bare - 1
    setting.report(
        "prefill: what the skill adds on the shared tower", 100 * shared, "%",
        "under 5 %", shared < 0.05,
    )  # fmt: skip


def steps(setting: Setting) -> None:
    """A training step of plain LoRA against LoRA and FPL, and its memory beside the estimate."""
    import bench_train

    sizes, layers, dtype = _host_sizes(setting)
    rounds = 1 if setting.tiny else 3
    for batch in (1, 4):
        made = bench_train.build(sizes, layers, batch, setting.place, dtype, True)
        times: dict[str, list[float]] = {name: [] for name in made}
        peaks = dict.fromkeys(made, 0)
        for _ in range(rounds + 1):
            for name, step in made.items():
                _reset_peak(setting.place)
                times[name].append(_once(step, setting.place))
                peaks[name] = max(peaks[name], _peak(setting.place))
        plain = statistics.median(next(iter(times.values()))[1:])
        for name, taken in times.items():
            passed = statistics.median(taken[1:])
            setting.report(f"step, batch {batch}, {name}", 1000 * passed, "ms")
            if setting.place.type == "cuda":
                setting.report(f"peak memory, batch {batch}, {name}", peaks[name] / 2**30, "GiB")
            if "shared" in name:
                setting.report(
                    f"step, batch {batch}: ratio of the shared tower to plain LoRA",
                    passed / plain, "", "under 1.10", passed / plain < 1.10,
                )  # fmt: skip
        _estimate(setting, batch, layers, dtype, peaks["skill, the host's tower shared"])
        del made, step


def _estimate(setting: Setting, batch: int, layers: int, dtype: torch.dtype, peak: int) -> None:
    if setting.tiny:
        return
    import bench_train
    from estimate_memory import llava_1_5_7b

    from llava_forgery.fpl.config import FPLConfig
    from llava_forgery.fpl.learner import ForgeryPromptLearner
    from llava_forgery.hosts.lora import LoraSettings
    from llava_forgery.hosts.memory import MemorySettings, estimate_memory

    config = llava_1_5_7b()
    config.text_config.num_hidden_layers = layers
    with torch.device("meta"):
        learner = ForgeryPromptLearner(FPLConfig(4096, 3))
    tokens = 576 + bench_train.QUESTION + bench_train.SCORE_SENTENCE + bench_train.ANSWER
    settings = MemorySettings(
        quantization=None, dtype=dtype,
        lora=LoraSettings(r=32, alpha=32, projections=bench_train.LINEAR),
        batch_size=batch, tokens=tokens, supervised=bench_train.ANSWER,
        # The allocator's peak, which knows nothing of CUDA's own context.
        more_trained=sum(p.numel() for p in learner.parameters()), allowance=0.0,
    )  # fmt: skip
    estimate = estimate_memory(config, settings).total
    setting.report(f"estimated memory, batch {batch}, shared tower", estimate / 2**30, "GiB")
    apart = abs(peak - estimate) / estimate
    setting.report(
        f"estimate against the peak, batch {batch}", 100 * apart, "%", "within 10 %", apart <= 0.1
    )


def quantised(setting: Setting) -> None:
    """The 24 GB recipe: the host's linear layers in 4 bits, batch 4, gradient checkpointing."""
    import bench_host_tower
    import bench_train
    import bitsandbytes as bnb
    from torch import nn

    if setting.place.type != "cuda":
        setting.report("bitsandbytes is here", True)
        return
    plain = bench_host_tower.make_host

    def in_four_bits(*arguments: Any) -> Any:
        model, processor = plain(*arguments)
        decoder = model.get_decoder()
        for name, layer in list(decoder.named_modules()):
            if isinstance(layer, nn.Linear):
                packed = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, bias=layer.bias is not None,
                    compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4",
                )  # fmt: skip
                packed.weight = bnb.nn.Params4bit(
                    layer.weight.data, requires_grad=False, compress_statistics=True,
                    quant_type="nf4", module=packed,
                )  # fmt: skip
                parent, _, last = name.rpartition(".")
                setattr(decoder.get_submodule(parent), last, packed.to(setting.place))
        return model, processor

    bench_train.make_host = in_four_bits
    sizes, layers, dtype = _host_sizes(setting)
    made = bench_train.build(sizes, layers, 4, setting.place, dtype, True)
    for name, step in made.items():
        _reset_peak(setting.place)
        times = [_once(step, setting.place) for _ in range(3)]
        setting.report(f"4 bits, batch 4, {name}: step", 1000 * statistics.median(times[1:]), "ms")
        peak = _peak(setting.place) / 2**30
        setting.report(
            f"4 bits, batch 4, {name}: peak memory", peak, "GiB", "under 24 GiB", peak < 24
        )


def simulator(setting: Setting) -> None:
    """Forgeries per second, training images per second, and stage 1's step with either renderer."""
    from llava_forgery.simulate.config import SimulatorConfig
    from llava_forgery.simulate.pairs import CENTRED, frame_face
    from llava_forgery.simulate.simulator import ForgerySimulator

    faces = list(sample_faces())
    batch, rounds = (8, 1) if setting.tiny else (256, 5)
    for side in (224,) if setting.tiny else (224, 380):
        framed = [frame_face(face, side, CENTRED) for face in faces]
        order = [i % len(framed) for i in range(batch)]
        pictures = np.stack([framed[i][0] for i in order]).transpose(0, 3, 1, 2)
        images = torch.from_numpy(np.ascontiguousarray(pictures)).to(setting.place)
        points = np.stack([framed[i][1] for i in order])
        for workers in (0, 1) if setting.tiny else (0, 4, 8, 16):
            made = ForgerySimulator(SimulatorConfig(), "torch", workers)
            seeds = (range(n * batch, (n + 1) * batch) for n in count())
            calls = partial(_forge, made, images, points, seeds)
            rate = batch / seconds_of(calls, setting.place, rounds)
            made.drawer.close()
            met = rate >= 5000
            goal = {"goal": "at least 5000", "met": met} if side == 224 and workers == 16 else {}
            setting.report(f"forgeries, {side} pixels, {workers} workers", rate, "/s", **goal)
    _supply(setting, faces)


def _forge(made: Any, images: torch.Tensor, points: np.ndarray, seeds: Iterator[range]) -> None:
    made.forge_on_device(images, points, list(next(seeds)))


def _supply(setting: Setting, faces: list[Any]) -> None:
    import datasets
    from torch.utils.data import DataLoader

    from llava_forgery.faces.records import FEATURES
    from llava_forgery.simulate.degrade import DegradeConfig
    from llava_forgery.simulate.pairs import FacePairs
    from llava_forgery.train.stage1 import collate_pairs, train_kfd

    rows = datasets.Dataset.from_list([face.to_row() for face in faces], features=FEATURES)
    pairs, batches = 8, 4 if setting.tiny else 60
    for workers in (0, 1) if setting.tiny else (0, 4, 8, 16):
        source = FacePairs(rows, pairs * batches, 224, degradation=DegradeConfig(), role="training")
        loader = DataLoader(source, pairs, num_workers=workers, collate_fn=collate_pairs)
        made_ready = iter(loader)
        next(made_ready)
        start = time.perf_counter()
        made = sum(len(batch["forged"]) for batch in made_ready)
        rate = 2 * made / (time.perf_counter() - start)
        setting.report(f"training images, 224 pixels, {workers} workers", rate, "/s")
    taken = {}
    number = 2 if setting.tiny else 60
    for renderer in ("cpu", setting.device):
        if renderer in taken:
            continue
        detector = _detector_to_train()
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            train_kfd(
                detector, rows, Path(folder) / "kfd", steps=number, batch_size=pairs,
                save_steps=None, workers=0 if setting.tiny else os.cpu_count() or 1,
                renderer=renderer, norm_batches=1,
            )  # fmt: skip
            taken[renderer] = (time.perf_counter() - start) / number
        setting.report(f"stage 1, renderer {renderer}: step", 1000 * taken[renderer], "ms")


def _detector_to_train() -> torch.nn.Module:
    from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector

    return KnowledgeGuidedForgeryDetector.from_preset("tiny")


def detector(setting: Setting) -> None:
    """Images per second of both presets."""
    for preset in ("tiny", "paper"):
        model = _detector(preset, setting.tiny).to(setting.place)
        side = model.config.encoder.image_size
        for batch in (1, 2) if setting.tiny else (1, 8, 32, 128):
            images = torch.rand(batch, 3, side, side, device=setting.place)
            with torch.inference_mode():
                taken = seconds_of(
                    lambda m=model, x=images: m(x), setting.place, 1 if setting.tiny else 5
                )
            setting.report(f"detector {preset}, batch {batch}", batch / taken, "images/s")


def _host_sizes(setting: Setting) -> tuple[Any, int, torch.dtype]:
    import bench_host_tower

    if setting.tiny:
        return bench_host_tower.TINY, 1, torch.float32
    return bench_host_tower.LLAVA_7B, 32, torch.bfloat16


def _reset_peak(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)


def _peak(place: torch.device) -> int:
    return torch.cuda.max_memory_allocated(place) if place.type == "cuda" else 0
