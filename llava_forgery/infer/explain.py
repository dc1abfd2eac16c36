"""Why a face is called what it is: Grad-CAM of the detector, its consistency maps, its mask.

Source of Grad-CAM: Selvaraju et al., arXiv:1610.02391, through the package grad-cam.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from llava_forgery.constants import FAKE, LABEL_NAMES
from llava_forgery.files import write_json
from llava_forgery.images import save_png
from llava_forgery.infer.overlay import caption_of, heat_overlay, side_by_side
from llava_forgery.infer.predictor import FaceInput, ForgeryPredictor, Photograph
from llava_forgery.infer.verdict import Verdict
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.optional import require
from llava_forgery.qa.templates import join_regions
from llava_forgery.tensors import from_bytes

NOTE = "what a detector of forged faces looked at, drawn by llava-forgery"
SIMULATED_NOTE = f"{NOTE}; the face is a simulated forgery, not a real photograph"


@dataclass(frozen=True)
class ExplanationMaps:
    """Where a detector looked in one face."""

    grad_cam: np.ndarray
    """(S, S) float32 in [0, 1]: what speaks for "fake" in the last tapped layer. Scaled so that
    its highest value is 1: it shows places, not amounts."""
    consistency: np.ndarray
    """(L, h, w) float32 in [0, 1]: for each tapped layer, how much nearer a patch is to the fake
    text than to the real one (softmax over the two channels)."""
    taps: tuple[int, ...]
    """Names of the L layers, as in the detector's configuration."""


@dataclass(frozen=True)
class Explanation(ExplanationMaps):
    """What a detector looked at in one face, and what was said of it."""

    image: np.ndarray
    """(S, S, 3) uint8, the face as the detector sees it."""
    verdict: Verdict


class _FromTaps(nn.Module):
    """The detector with its taps as modules that grad-cam can hook.

    Grad-CAM needs activations with a gradient. A frozen encoder runs under ``no_grad`` and gives
    none, so the graph begins at its features. For the last tap nothing is lost: no later layer of
    the encoder reads it.
    """

    def __init__(self, kfd: KnowledgeGuidedForgeryDetector) -> None:
        super().__init__()
        self.kfd = kfd
        self.taps = nn.ModuleList(nn.Identity() for _ in kfd.encoder.widths)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 2) logits of images (B, 3, S, S) in [0, 1]."""
        with torch.no_grad():
            features = self.kfd.encoder(pixel_values)
        features = [
            tap(feature.detach().float().requires_grad_(True))
            for tap, feature in zip(self.taps, features, strict=True)
        ]
        return self.kfd.read_features(features).class_logits


def grad_cam(
    kfd: KnowledgeGuidedForgeryDetector, images: torch.Tensor, target: int = FAKE
) -> np.ndarray:
    """Grad-CAM of the detector's logit of one class, on the last tapped layer.

    Args:
        kfd: In eval mode; its weights and their gradients are left as they are.
        images: (B, 3, S, S) in [0, 1].
        target: 1 for what speaks for fake, 0 for real.

    Returns:
        (B, S, S) float32 in [0, 1], each scaled to its own highest value; all 0 where nothing
        speaks for the class.

    Raises:
        ImportError: grad-cam is missing.
        ValueError: Another target.
    """
    if target not in range(len(LABEL_NAMES)):
        raise ValueError(f"target must be 0 (real) or 1 (fake), got {target!r}")
    package = require("pytorch_grad_cam", extra="eval", feature="Grad-CAM")
    targets = require("pytorch_grad_cam.utils.model_targets", extra="eval", feature="Grad-CAM")
    model = _FromTaps(kfd)
    side = images.shape[-1]
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        package.GradCAM(model, target_layers=[model.taps[-1]]) as cam,
    ):
        # Tensors made under inference_mode cannot enter a graph.
        maps = cam(images.clone(), [targets.ClassifierOutputTarget(target)] * len(images))
    assert maps.shape == (len(images), side, side)
    return maps.astype(np.float32)


def explain_maps(predictor: ForgeryPredictor, faces: list[FaceInput]) -> list[ExplanationMaps]:
    """What the detector looked at in faces; the language model is not asked.

    Args:
        predictor: The skill.
        faces: From ``predictor.find_faces``.

    Raises:
        ImportError: grad-cam is missing.
    """
    if not faces:
        return []
    images = torch.stack([from_bytes(face.image) for face in faces])
    with predictor.vlm.detector_alone() as kfd:
        cams = grad_cam(kfd, images.to(predictor.vlm.device))
    with torch.inference_mode():
        maps = predictor.vlm.detect(images).consistency_maps
    nearer_to_fake = maps.float().softmax(dim=2)[:, :, FAKE].cpu().numpy()
    return [
        ExplanationMaps(cam, layers, kfd.config.encoder.taps)
        for cam, layers in zip(cams, nearer_to_fake, strict=True)
    ]


def explain(predictor: ForgeryPredictor, faces: list[FaceInput]) -> list[Explanation]:
    """Verdicts of faces with what the detector looked at.

    Args:
        predictor: The skill.
        faces: From ``predictor.find_faces``.

    Raises:
        ImportError: grad-cam is missing.
    """
    every = zip(faces, explain_maps(predictor, faces), predictor.predict_faces(faces), strict=True)
    return [
        Explanation(**vars(maps), image=face.image, verdict=verdict)
        for face, maps, verdict in every
    ]


def explanation_panels(
    explanation: Explanation, truth: tuple[str, np.ndarray] | None = None
) -> list[tuple[str, np.ndarray]]:
    """Captions and pictures (S, S, 3) uint8: face, mask, Grad-CAM, a map for each layer.

    Args:
        explanation: From :func:`explain`.
        truth: Caption and (S, S) mask in [0, 1], where the forged area is known.
    """
    image = explanation.image
    height, width = image.shape[:2]
    panels = [(caption_of(explanation.verdict), image)]
    if truth is not None:
        panels.append((truth[0], _grey(truth[1])))
    panels += [
        ("mask of the\nforged area", heat_overlay(image, explanation.verdict.mask)),
        ("Grad-CAM of fake\n(its own scale)", heat_overlay(image, explanation.grad_cam)),
    ]
    for tap, layer in zip(explanation.taps, explanation.consistency, strict=True):
        # Patches stay visible: the map has no more detail than that.
        enlarged = cv2.resize(layer, (width, height), interpolation=cv2.INTER_NEAREST)
        panels.append((f"nearer to fake\n(layer {tap})", _grey(enlarged)))
    return panels


def explain_photograph(
    predictor: ForgeryPredictor,
    image: Photograph,
    output_dir: str | PathLike,
    cropped: bool = False,
) -> list[Path]:
    """Explain the largest face of a photograph.

    Args:
        predictor: The skill.
        image: As ``predictor.predict`` takes it.
        output_dir: Receives ``explanation.png``, a labelled sheet, and ``explanation.json``, the
            verdict.
        cropped: The image is a face crop already.

    Returns:
        The two files.

    Raises:
        ValueError: As ``predictor.predict``.
        ImportError: grad-cam is missing.
    """
    (explanation,) = explain(predictor, predictor.find_faces(image, cropped)[:1])
    return _write(Path(output_dir) / "explanation", explanation, None, NOTE)


def explain_pair(
    predictor: ForgeryPredictor,
    forged: np.ndarray,
    pristine: np.ndarray,
    mask: np.ndarray,
    regions: Sequence[str],
    output_dir: str | PathLike,
) -> list[Path]:
    """Explain a simulated forgery and its pristine image, beside the true mask.

    Args:
        predictor: The skill.
        forged: (S, S, 3) uint8 RGB of the predictor's size.
        pristine: As ``forged``.
        mask: (S, S) in [0, 1], the forged area.
        regions: What was forged.
        output_dir: Receives ``forged.png``, ``pristine.png`` and the verdicts as JSON.

    Returns:
        The four files.

    Raises:
        ImportError: grad-cam is missing.
    """
    size = float(predictor.size)
    faces = [FaceInput(image, (0.0, 0.0, size, size)) for image in (forged, pristine)]
    written = []
    for name, explanation, truth in zip(
        ("forged", "pristine"),
        explain(predictor, faces),
        ((f"true mask:\n{join_regions(regions)}", mask), ("true mask:\nnone", 0 * mask)),
        strict=True,
    ):
        note = SIMULATED_NOTE if name == "forged" else NOTE
        written += _write(Path(output_dir) / name, explanation, truth, note)
    return written


def _write(
    path: Path, explanation: Explanation, truth: tuple[str, np.ndarray] | None, note: str
) -> list[Path]:
    sheet, record = path.with_suffix(".png"), path.with_suffix(".json")
    save_png(side_by_side(explanation_panels(explanation, truth)), sheet, note)
    write_json(record, explanation.verdict.to_dict())
    return [sheet, record]


def _grey(values: np.ndarray) -> np.ndarray:
    """(S, S) in [0, 1] as (S, S, 3) uint8."""
    return np.repeat((255 * values).round().astype(np.uint8)[..., None], 3, axis=2)
