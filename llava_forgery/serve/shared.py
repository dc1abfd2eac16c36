"""A predictor whose faces share batches with others, for work that sees one after the other."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llava_forgery.faces.detected import DetectedFace, FaceDetector
from llava_forgery.infer.predictor import FaceInput, Photograph
from llava_forgery.infer.verdict import Verdict
from llava_forgery.serve.engine import Engine
from llava_forgery.serve.jobs import Job


class SharedPredictor:
    """What ``judge_video`` needs of a predictor; what it computes goes through an engine's queue.

    Each look for faces is a step of the job, so that a job that was cancelled ends soon.

    Args:
        engine: With the predictor.
        job: Counts the frames.
    """

    def __init__(self, engine: Engine, job: Job) -> None:
        self._engine, self._job = engine, job
        self.face_detector = _Counting(engine.predictor, job)

    @property
    def size(self) -> int:
        """Side of the square that the detector sees, in pixels."""
        return self._engine.predictor.size

    def find_faces(self, image: Photograph, cropped: bool = False) -> list[FaceInput]:
        """As ``ForgeryPredictor.find_faces``."""
        self._job.step()
        return self._engine.predictor.find_faces(image, cropped)

    def predict_scores(self, faces: Sequence[FaceInput]) -> tuple[list[float], list[float]]:
        """As ``ForgeryPredictor.predict_scores``."""
        rated = self._engine.predict_scores(faces, patient=True).result()
        return [score for score, _ in rated], [p_yes for _, p_yes in rated]

    def predict_faces(self, faces: Sequence[FaceInput]) -> list[Verdict]:
        """As ``ForgeryPredictor.predict_faces``."""
        self._job.step(0)
        return self._engine.predict_faces(faces, patient=True).result()


class _Counting:
    """A finder of faces each of whose pictures is a step of a job."""

    def __init__(self, predictor: Any, job: Job) -> None:
        self._predictor, self._job = predictor, job

    def detect(self, image: np.ndarray) -> list[DetectedFace]:
        self._job.step()
        finder: FaceDetector = self._predictor.face_detector
        return finder.detect(image)
