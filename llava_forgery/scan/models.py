"""What the processes of a scan load: a finder of faces, the detector, the language model."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llava_forgery.faces.detect import get_detector
from llava_forgery.files import read_json
from llava_forgery.hosts.names import KFD
from llava_forgery.infer.predictor import FaceFinder, ForgeryPredictor
from llava_forgery.kfd.checkpoint import CONFIG


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
        path = Path(self.model) / KFD / CONFIG
        if not path.is_file():
            raise FileNotFoundError(f"{self.model} holds no {KFD}/{CONFIG}: it is no adapter")
        return read_json(path)["config"]["encoder"]["image_size"]

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

    def predictor(self, answers: str = "all") -> ForgeryPredictor:
        """Detector and language model.

        Args:
            answers: ``none`` loads the detector alone.
        """
        return ForgeryPredictor.from_pretrained(
            self.model,
            self.base_model,
            device=self.device,
            allow_download=self.allow_download,
            answers=answers,
        )
