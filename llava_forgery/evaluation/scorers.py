"""Scorers of face images: a detector, or a host with the skill."""

from collections.abc import Sequence
from os import PathLike
from typing import Protocol

import numpy as np
import torch
from torch import nn

from llava_forgery.evaluation.checks import probabilities
from llava_forgery.hosts.llava.names import in_llava_layout
from llava_forgery.hosts.names import CONFIG as ADAPTER_CONFIG
from llava_forgery.hosts.names import is_exported
from llava_forgery.hosts.quantized import pick_device
from llava_forgery.hub import local_folder
from llava_forgery.infer.halving import in_halves
from llava_forgery.infer.predictor import FaceInput, ForgeryPredictor
from llava_forgery.kfd.calibration import Thresholds
from llava_forgery.kfd.checkpoint import CONFIG as KFD_CONFIG
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector
from llava_forgery.tensors import from_bytes

RECORD_NAMES = {"kfd": "score", "p_yes": "p_yes", "p_yes_uncited": "p_yes_uncited"}
"""Names of a scorer's scores in an evaluation's records."""


class Scorer(Protocol):
    """Scores of images, one list for each of ``names``."""

    names: tuple[str, ...]
    """``"kfd"``: the detector's score; ``"p_yes"``: the language model's; ``"p_yes_uncited"``: the
    same with a prompt that does not cite the detector's score."""
    size: int
    """Side S of the images in pixels."""
    model: nn.Module
    """Model whose weights determine the scores."""

    def __call__(self, images: Sequence[np.ndarray]) -> dict[str, list[float]]:
        """Scores in [0, 1] of images (S, S, 3) uint8, in one batch."""


def named_scores(scorer: Scorer, images: Sequence[np.ndarray]) -> list[dict[str, float]]:
    """Scores of each image, by their names in an evaluation's records.

    Raises:
        ValueError: A score is not in [0, 1].
    """
    scores = scorer(images)
    for name, values in scores.items():
        probabilities(values, name)
    return [
        {RECORD_NAMES[name]: values[i] for name, values in scores.items()}
        for i in range(len(images))
    ]


class DetectorScorer:
    """The KFD's score; see :class:`Scorer`."""

    names: tuple[str, ...] = ("kfd",)

    def __init__(self, kfd: KnowledgeGuidedForgeryDetector) -> None:
        self.model = self.kfd = kfd.eval()
        self.size = kfd.config.encoder.image_size

    @property
    def thresholds(self) -> Thresholds:
        """Thresholds of the score, from the detector's calibration."""
        return self.kfd.thresholds

    def __call__(self, images: Sequence[np.ndarray]) -> dict[str, list[float]]:
        return {"kfd": in_halves(self._scores, images)}

    def masks(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Maps of the forged area of images (S, S, 3) uint8, each (S, S) float32 in [0, 1]."""
        return in_halves(
            lambda part: list(_detect(self.kfd, part).mask[:, 0].cpu().numpy()), images
        )

    def _scores(self, images: Sequence[np.ndarray]) -> list[float]:
        return _detect(self.kfd, images).score.tolist()


class AdapterScorer:
    """The KFD's score and P(yes), without generated answers; see :class:`Scorer`.

    Args:
        predictor: Predictor with a host.
        uncited: Ask a second time, without the score in the prompt.
    """

    def __init__(self, predictor: ForgeryPredictor, uncited: bool = False) -> None:
        self.predictor = predictor
        self.names: tuple[str, ...] = ("kfd", "p_yes", *(["p_yes_uncited"] if uncited else []))
        self.model = predictor.vlm
        self.size = predictor.size

    @property
    def thresholds(self) -> Thresholds:
        """Thresholds of the score, from the detector's calibration."""
        return self.predictor.kfd.thresholds

    def __call__(self, images: Sequence[np.ndarray]) -> dict[str, list[float]]:
        box = (0.0, 0.0, float(self.size), float(self.size))
        faces = [FaceInput(image, box) for image in images]
        scores, p_yes = self.predictor.predict_scores(faces)
        found = {"kfd": scores, "p_yes": p_yes}
        if "p_yes_uncited" in self.names:
            found["p_yes_uncited"] = self.predictor.predict_scores(faces, cite_scores=False)[1]
        return found

    def masks(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As for :meth:`DetectorScorer.masks`."""
        with self.predictor.vlm.detector_alone() as kfd:
            return DetectorScorer(kfd).masks(images)


@torch.inference_mode()
def _detect(kfd: KnowledgeGuidedForgeryDetector, images: Sequence[np.ndarray]) -> KFDOutput:
    reference = next(kfd.consistency.parameters())
    return kfd(torch.stack([from_bytes(image) for image in images]).to(reference))


def load_scorer(
    directory: str | PathLike,
    base_model: str | None = None,
    backend: str = "auto",
    *,
    device: str | torch.device | None = None,
    allow_download: bool = False,
    uncited: bool = False,
) -> DetectorScorer | AdapterScorer:
    """Load a detector's folder, or a forgery adapter's with its host.

    Args:
        directory: Folder written by ``train detector`` or ``train adapter``, or a whole model in
            LLaVA's layout or written by ``convert export-transformers``.
        base_model: For an adapter: folder or hub name of the host; by default the one it names.
        backend: For an adapter: "transformers", "llava", or "auto".
        device: Device to load onto; a GPU if there is one by default.
        allow_download: Whether models that the folder's files name may be downloaded.
        uncited: As for :class:`AdapterScorer`.

    Raises:
        FileNotFoundError: The folder holds neither.
        ValueError: A file is damaged, or ``base_model`` or ``uncited`` is given for a detector.
    """
    directory = local_folder(directory)
    if (directory / KFD_CONFIG).is_file():
        if base_model is not None:
            raise ValueError(f"{directory} is a detector, which needs no host: no --base-model")
        if uncited:
            raise ValueError(f"{directory} is a detector, which has no prompt: no --uncited")
        kfd = KnowledgeGuidedForgeryDetector.from_pretrained(
            directory, allow_download=allow_download
        )
        return DetectorScorer(kfd.to(pick_device(device)))
    whole = in_llava_layout(directory) or is_exported(directory)
    if not (whole or (directory / ADAPTER_CONFIG).is_file()):
        raise FileNotFoundError(
            f"{directory} holds neither {ADAPTER_CONFIG} (a forgery adapter) nor {KFD_CONFIG} (a "
            "detector); give a folder that `llava-forgery train adapter` or `train detector` wrote"
        )
    return AdapterScorer(
        ForgeryPredictor.from_pretrained(
            directory, base_model, backend, device=device, allow_download=allow_download
        ),
        uncited,
    )
