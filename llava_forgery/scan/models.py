"""What the processes of a scan load: a finder of faces, the detector, the language model."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from llava_forgery.faces.detect import get_detector
from llava_forgery.files import read_json
from llava_forgery.hosts.adapter import KFD
from llava_forgery.infer.predictor import FaceFinder, FaceInput, ForgeryPredictor, Photograph
from llava_forgery.infer.verdict import Verdict
from llava_forgery.kfd.checkpoint import CONFIG
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.tensors import from_bytes

ANSWERS = ("none", "flagged", "all")
"""For which faces the language model is asked."""


@dataclass(frozen=True)
class ModelSettings:
    """Which model judges."""

    model: str
    """Folder of a forgery adapter, which every worker can read."""
    base_model: str | None = None
    """Folder or hub name of its host; None: the one that the adapter names."""
    device: str | None = None
    """None: a GPU if the worker has one."""
    face_detector: str = "dlib"
    """Name of what finds faces."""
    allow_download: bool = False
    """Whether what the adapter's files name may be downloaded."""

    @property
    def size(self) -> int:
        """Side of the square that the detector sees, in pixels; no weights are read.

        Raises:
            FileNotFoundError: There is no detector in the folder.
        """
        return self._encoder()["image_size"]

    def _encoder(self) -> dict[str, Any]:
        path = Path(self.model) / KFD / CONFIG
        if not path.is_file():
            raise FileNotFoundError(f"{self.model} holds no {KFD}/{CONFIG}: it is no adapter")
        return read_json(path)["config"]["encoder"]

    @cached_property
    def weights(self) -> str:
        """SHA-256 of all files of the adapter and their names, in hexadecimal."""
        digest = hashlib.sha256()
        root = Path(self.model)
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()

    def finder(self) -> FaceFinder:
        """What finds faces; no model is loaded."""
        return FaceFinder(self.size, get_detector(self.face_detector))

    def predictor(self) -> ForgeryPredictor:
        """Detector and language model."""
        return ForgeryPredictor.from_pretrained(
            self.model,
            self.base_model,
            device=self.device,
            allow_download=self.allow_download,
        )

    def detector(self) -> "DetectorAlone":
        """The detector, without the language model."""
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        base_model = self.base_model if self._encoder()["kind"] == "host" else None
        kfd = KnowledgeGuidedForgeryDetector.from_pretrained(
            Path(self.model) / KFD, base_model=base_model, allow_download=self.allow_download
        )
        return DetectorAlone(kfd.to(device))


class DetectorAlone(FaceFinder):
    """Judges as a predictor does, without a language model: there is no P(yes) and no answer."""

    def __init__(self, kfd: KnowledgeGuidedForgeryDetector) -> None:
        super().__init__(kfd.config.encoder.image_size)
        self.kfd = kfd.eval()

    def predict_all(self, image: Photograph, cropped: bool = False) -> list[Verdict]:
        """Judge every face, the largest first; see :meth:`ForgeryPredictor.predict_all`."""
        return self.predict_faces(self.find_faces(image, cropped))

    @torch.inference_mode()
    def predict_faces(self, faces: Sequence[FaceInput]) -> list[Verdict]:
        """Verdicts of faces; see :meth:`ForgeryPredictor.predict_faces`."""
        pixels = torch.stack([from_bytes(face.image) for face in faces])
        found = self.kfd(pixels.to(next(self.kfd.parameters()).device))
        masks = found.mask[:, 0].float().cpu().numpy()
        domain = self.kfd.calibration and self.kfd.calibration.domain
        return [
            Verdict(
                score=score,
                p_yes=None,
                answer=None,
                regions=(),
                agree=None,
                mask=mask,
                box=face.box,
                thresholds=self.kfd.thresholds,
                warnings=face.warnings
                + (domain.warnings(face.image, face.box[2] - face.box[0], maps) if domain else ()),
            )
            for face, score, mask, maps in zip(
                faces, found.score.tolist(), masks, found.consistency_maps, strict=True
            )
        ]

    def predict_scores(self, faces: Sequence[FaceInput]) -> tuple[list[float], list[None]]:
        """Scores of faces, and None for each P(yes)."""
        return [verdict.score for verdict in self.predict_faces(faces)], [None] * len(faces)
