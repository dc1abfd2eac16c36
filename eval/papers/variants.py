"""Sizes of heads and FPL against each other: trained the same way, judged on the same forgeries.

A variant is the detector's heads and the kind of FPL, ``lite`` or ``paper`` each; a cell is a
variant with a seed. Everything finished is kept under a hash of its settings::

    DIR/cells/<key>/cell.json       figures and settings of a cell
    DIR/detectors/<key>/            detectors, shared by the variants with the same heads
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from eval.papers.cells import settings_key
from eval.papers.held_out import data_stamp
from eval.papers.variant_tables import (
    FIGURES,
    RunResult,
    Variant,
    VariantSettings,
    variants_csv,
    variants_markdown,
)
from llava_forgery.constants import FAKE, REAL
from llava_forgery.convert.sources import load_trunk
from llava_forgery.data.build_qa import build_conversations
from llava_forgery.evaluation.masks import mask_iou
from llava_forgery.evaluation.metrics import auc
from llava_forgery.files import read_json, write_json, write_text
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.quantized import pick_device, place_host
from llava_forgery.hosts.transformers.loading import load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.infer.predictor import FaceInput, ForgeryPredictor
from llava_forgery.kfd.config import PRESETS, KFDConfig
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.simulate.degrade import DegradeConfig
from llava_forgery.simulate.pairs import CENTRED, FacePairs
from llava_forgery.tensors import from_bytes, to_bytes
from llava_forgery.train.adapter import train_adapter
from llava_forgery.train.dialogues import RowSource
from llava_forgery.train.stage1 import train_kfd
from llava_forgery.train.warmup import WarmUp, warm_up_fpl

logger = logging.getLogger(__name__)

# Short prompts, so that more steps fit into the time.
WORDING = {"follow_ups": 0.0, "task_descriptions": 0.25, "kfd_results": 0.75}
LORA = LoraSettings(r=32, alpha=64, dropout=0.05)
TEST_SEED = 2


@dataclass(frozen=True)
class VariantData:
    """What the variants are trained on and judged on."""

    faces: str
    """Folder written by ``data prepare``."""
    host: str
    """Folder or hub name of the host."""
    trunk_weights: str | None = None
    """safetensors to start the trunk from."""
    config: KFDConfig = PRESETS["tiny"]
    """The detector, whose heads and image size are set by variant and settings."""

    def stamp(self) -> dict[str, Any]:
        """What it holds, so that changed data are not taken for the same."""
        host = data_stamp(self.host) if Path(self.host).is_dir() else self.host
        trunk = None if self.trunk_weights is None else data_stamp(self.trunk_weights)
        return {
            "faces": data_stamp(self.faces),
            "host": host,
            "trunk_weights": trunk,
            "config": self.config.to_dict(),
        }


def compare_variants(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    data: VariantData,
    settings: VariantSettings,
    faces: tuple[datasets.Dataset, datasets.Dataset],
    directory: str | PathLike,
) -> list[RunResult]:
    """Train and judge what is not there yet, and write ``variants.csv`` and ``variants.md``.

    Both files are brought up to date after every cell.

    Args:
        variants: To compare.
        seeds: Of data, weights and order in training; the test is the same for all.
        data: Faces, host, trunk.
        settings: Sizes.
        faces: For training and for the test, of other people.
        directory: Gets cells, detectors and the table.
    """
    directory = Path(directory)
    cells = []
    # Seed by seed, so that an interrupted comparison has whole rounds.
    for seed in seeds:
        for variant in variants:
            asked = {**data.stamp(), **asdict(settings), **asdict(variant), "seed": seed}
            file = directory / "cells" / settings_key(asked) / "cell.json"
            if not file.is_file():
                logger.info("%s, seed %d", variant, seed)
                cell = _run_cell(variant, seed, data, settings, faces, directory)
                write_json(file, {"cell": asdict(cell), "settings": asked})
            cell = RunResult(**read_json(file)["cell"])
            figures = ", ".join(f"{name} {value:.3f}" for name, value in cell.figures.items())
            took = ", ".join(f"{name} {value:.0f} s" for name, value in cell.seconds.items())
            logger.info("%s, seed %d: %s (%s)", variant, seed, figures, took)
            cells.append(cell)
            write_text(directory / "variants.csv", variants_csv(cells))
            write_text(directory / "variants.md", variants_markdown(cells, settings))
    return cells


def _run_cell(
    variant: Variant,
    seed: int,
    data: VariantData,
    settings: VariantSettings,
    faces: tuple[datasets.Dataset, datasets.Dataset],
    directory: Path,
) -> RunResult:
    train, test = faces
    started = time.monotonic()
    folder, trained = _detector(variant.heads, seed, data, settings, train, directory)
    after_detector = time.monotonic()
    kfd = KnowledgeGuidedForgeryDetector.from_pretrained(folder / "model").to(pick_device())
    vlm = _adapter(variant, seed, kfd, data, settings, train, folder)
    after_adapter = time.monotonic()
    pairs = FacePairs(
        test,
        settings.test_pairs,
        size=settings.image_size,
        seed=TEST_SEED,
        framing=CENTRED,
        role="test",
    )
    figures = judge_pairs(ForgeryPredictor(vlm), pairs)
    heads = (vlm.kfd.locator, vlm.kfd.classifier)
    return RunResult(
        variant.heads,
        variant.fpl,
        seed,
        figures,
        {
            "heads": sum(p.numel() for head in heads for p in head.parameters()),
            "fpl": sum(p.numel() for p in vlm.fpl.parameters()),
        },
        {
            "stage 1": after_detector - started if trained else 0.0,
            "stage 2": after_adapter - after_detector,
            "judging": time.monotonic() - after_adapter,
        },
    )


def _detector(
    heads: str,
    seed: int,
    data: VariantData,
    settings: VariantSettings,
    train: datasets.Dataset,
    directory: Path,
) -> tuple[Path, bool]:
    """The folder of a trained detector, and whether it was trained now."""
    asked = {
        **data.stamp(),
        "heads": heads,
        "seed": seed,
        "image_size": settings.image_size,
        "steps": settings.kfd_steps,
        "batch_size": settings.kfd_batch_size,
    }
    folder = directory / "detectors" / settings_key(asked)
    if (folder / "settings.json").is_file():
        return folder, False
    encoder = replace(data.config.encoder, image_size=settings.image_size)
    config = replace(data.config, encoder=encoder, heads=heads)
    detector = KnowledgeGuidedForgeryDetector.from_config(config, seed)
    if data.trunk_weights is not None:
        load_trunk(detector, data.trunk_weights)
    train_kfd(
        detector,
        train,
        folder / "model",
        steps=settings.kfd_steps,
        batch_size=settings.kfd_batch_size,
        seed=seed,
        save_steps=None,
    )
    write_json(folder / "settings.json", asked)
    return folder, True


def _adapter(
    variant: Variant,
    seed: int,
    kfd: KnowledgeGuidedForgeryDetector,
    data: VariantData,
    settings: VariantSettings,
    train: datasets.Dataset,
    folder: Path,
) -> ForgeryVLM:
    """A host with trained FPL and LoRA; the conversations are the same for both kinds of FPL."""
    name = f"conversations-{settings.pairs}"
    if not (folder / name).is_dir():
        pairs = FacePairs(
            train,
            settings.pairs,
            size=settings.image_size,
            seed=seed,
            degradation=DegradeConfig(),
            role="stage2",
        )
        build_conversations(pairs, kfd, folder / name, seed=seed, **WORDING)
    conversations = datasets.load_from_disk(str(folder / name))
    model, processor = load_host(Path.cwd(), data.host)
    fpl = FPLConfig(
        model.get_input_embeddings().weight.shape[1], kfd.config.num_layers, variant.fpl
    )
    vlm = attach_forgery(place_host(model, None), processor, kfd, fpl, LORA, seed)
    if settings.fpl_warmup_steps:
        how = WarmUp(settings.fpl_warmup_steps, seed, batch_size=settings.align_batch_size)
        warm_up_fpl(vlm, RowSource(conversations, "the conversations"), how)
    learning_rate = 2e-3
    return train_adapter(
        vlm,
        conversations,
        folder / f"adapter-{variant.fpl}",
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=learning_rate,
        # The host's first gradients would undo the words of the warm start.
        fpl_learning_rate=learning_rate / 10 if settings.fpl_warmup_steps else None,
        seed=seed,
        save_steps=None,
    )


@torch.inference_mode()
def judge_pairs(predictor: ForgeryPredictor, pairs: FacePairs, batch_size: int = 8) -> dict:
    """The figures of a host with the skill.

    Args:
        predictor: The skill.
        pairs: Of people who were not in training.
        batch_size: Pairs at once.

    Returns:
        Name of ``FIGURES`` to value in [0, 1].
    """
    box = (0.0, 0.0, float(pairs.size), float(pairs.size))
    labels: list[int] = []
    scores: list[float] = []
    p_yes: list[float] = []
    ious: list[float] = []
    for start in range(0, len(pairs), batch_size):
        batch = [pairs[i] for i in range(start, min(start + batch_size, len(pairs)))]
        for label, images in (
            (FAKE, [to_bytes(pair.forged) for pair in batch]),
            (REAL, [to_bytes(pair.pristine) for pair in batch]),
        ):
            seen, said = predictor.predict_scores([FaceInput(image, box) for image in images])
            scores, p_yes = scores + seen, p_yes + said
            labels += [label] * len(images)
            if label == FAKE:
                found = predictor.vlm.detect(torch.stack([from_bytes(i) for i in images])).mask
                found = found[:, 0].float().cpu().numpy() > 0.5
                truth = np.stack([pair.mask[0].numpy() > 0.5 for pair in batch])
                ious += [mask_iou(f[None], t[None]) for f, t in zip(found, truth, strict=True)]
    values = (auc(labels, scores), float(np.mean(ious)), auc(labels, p_yes))
    return dict(zip(FIGURES, values, strict=True))
