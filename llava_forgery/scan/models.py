"""What the processes of a scan load: a finder of faces, the detector, the language model."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llava_forgery.faces.detect import get_detector
from llava_forgery.files import read_json
from llava_forgery.hosts.names import KFD
from llava_forgery.hub import local_folder
from llava_forgery.infer.default import default_host, default_model, is_detector
from llava_forgery.infer.predictor import FaceFinder, ForgeryPredictor
from llava_forgery.kfd.checkpoint import CONFIG


@dataclass(frozen=True)
class ModelSettings:
    """Which model judges."""

    model: str | None = None
    """Folder or hub name of a forgery adapter or a detector, which every worker can read; None: the
    shipped one, of each worker's own installation."""
    base_model: str | None = None
    """Folder or hub name of its host; None: the one that the adapter names, or the shipped
    adapter's own."""
    device: str | None = None
    """None: a GPU if the worker has one."""
    face_detector: str = "dlib"
    """Name of what finds faces."""
    allow_download: bool = False
    """Whether what the adapter's files name may be downloaded."""

    @property
    def folder(self) -> Path:
        """Where the model's files are on this machine.

        Raises:
            FileNotFoundError: There is none.
        """
        return default_model() if self.model is None else local_folder(self.model)

    @property
    def size(self) -> int:
        """Side of the square that the detector sees, in pixels; no weights are read.

        Raises:
            FileNotFoundError: There is no detector in the folder.
        """
        folder = self.folder
        path = (folder if is_detector(folder) else folder / KFD) / CONFIG
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no {KFD}/{CONFIG}: it is no adapter")
        return read_json(path)["config"]["encoder"]["image_size"]

    @cached_property
    def weights(self) -> str:
        """SHA-256 of all files of the model and their names, in hexadecimal, where it was first
        asked for: on the machine that starts the scan."""
        return self._hash()

    def _hash(self) -> str:
        digest = hashlib.sha256()
        root = self.folder
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

        Raises:
            ValueError: This machine has other files under the model's name than the scan's own.
        """
        folder, host = self.folder, self.base_model
        if (found := self._hash()) != self.weights:
            raise ValueError(
                f"{folder} on this machine has other files than where the scan was started "
                f"(SHA-256 {found[:16]}, expected {self.weights[:16]}); copy the same model there"
            )
        if self.model is None and host is None and answers != "none":
            host = str(default_host())
        return ForgeryPredictor.from_pretrained(
            folder,
            host,
            device=self.device,
            allow_download=self.allow_download,
            answers=answers,
        )
