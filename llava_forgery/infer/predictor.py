"""From a photograph to verdicts: find faces, detect, ask the language model."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from llava_forgery.call_state import lock_of
from llava_forgery.faces.crop import MARGIN, crop_square
from llava_forgery.faces.detect import FaceDetector, get_detector
from llava_forgery.faces.detected import nothing_found, square_of_face
from llava_forgery.hosts.auto import AutoForgeryModel
from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.hosts.quantized import pick_device
from llava_forgery.hub import local_folder
from llava_forgery.images import read_image, to_rgb
from llava_forgery.infer.answering import WrittenAnswer, write_answers
from llava_forgery.infer.batching import BatchLimits
from llava_forgery.infer.default import (
    exported_reads_host,
    is_detector,
    load_detector_of,
    shipped_model,
)
from llava_forgery.infer.dialogue import Dialogue
from llava_forgery.infer.halving import in_halves
from llava_forgery.infer.memory import FaceMemory, free_memory
from llava_forgery.infer.verdict import Verdict, agree
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector
from llava_forgery.qa.answers import parse_answer
from llava_forgery.qa.build import build_prompt
from llava_forgery.tensors import from_bytes

# Pictures with a longer side are rather photographs than face crops.
_CROP_SIDE = 1024

# Faces that the detector sees at once: it is no faster with more, and takes more memory.
_DETECTED_AT_ONCE = 8

logger = logging.getLogger(__name__)

ANSWERS = ("none", "flagged", "all")
"""For which faces the language model is asked."""
NOT_ASKED = WrittenAnswer(None, None, False)

Result = TypeVar("Result")
Photograph = str | PathLike | np.ndarray | Image.Image


@dataclass(frozen=True)
class FaceInput:
    """One face on its way to a verdict."""

    image: np.ndarray
    """(S, S, 3) uint8."""
    box: tuple[float, float, float, float]
    """In pixels of the photograph."""
    warnings: tuple[str, ...] = ()
    """What is wrong with the square, in whole phrases."""


class FaceFinder:
    """Finds the squares of pictures that are judged; threads may share it.

    Args:
        size: Side S of the squares in pixels.
        detector: Finds faces; dlib's, when it is first needed, if None.
    """

    def __init__(self, size: int, detector: FaceDetector | None = None) -> None:
        self._size = size
        self._face_detector = detector

    @property
    def size(self) -> int:
        """Side S of the square that the detector sees, in pixels."""
        return self._size

    @property
    def face_detector(self) -> FaceDetector:
        """What finds the faces; dlib's is made when it is first asked for.

        Raises:
            ImportError: No other was given, and dlib is not installed (extra ``faces``).
            FileNotFoundError: The same of its landmarks' weights.
        """
        with lock_of(self):
            if self._face_detector is None:
                self._face_detector = get_detector("dlib")
            return self._face_detector

    @face_detector.setter
    def face_detector(self, detector: FaceDetector) -> None:
        self._face_detector = detector

    def find_faces(self, image: Photograph, cropped: bool = False) -> list[FaceInput]:
        """The squares to be judged, the largest first.

        Args:
            image: A path, a PIL image, or an array as :func:`llava_forgery.images.to_rgb` takes it.
            cropped: The image is a face crop already. The face is looked for in it all the same:
                where it is framed otherwise than training frames faces, it is cut out anew, as
                far as the image reaches; what cannot be mended is a warning.

        Raises:
            ValueError: The file is no image, or no face was found.
        """
        pixels = read_image(image) if isinstance(image, (str, PathLike)) else to_rgb(image)
        if cropped:
            return [FaceInput(*square_of_face(pixels, self.size, lambda: self.face_detector))]
        found = self.face_detector.detect(pixels)
        if not found:
            named = f"{image}: " if isinstance(image, (str, PathLike)) else ""
            remedy = "give a picture in which the face is larger, or seen from the front"
            if max(pixels.shape[:2]) <= _CROP_SIDE:
                remedy += ", or, if it is a face crop, pass cropped=True (--cropped)"
            raise ValueError(f"{named}{nothing_found(self.face_detector, pixels)}; {remedy}")
        faces = []
        for face in found:
            crop, box, _ = crop_square(pixels, face.landmarks, self.size, MARGIN)
            faces.append(FaceInput(crop, box))
        return faces

    def largest_face(self, image: Photograph, cropped: bool = False) -> FaceInput:
        """The first of :meth:`find_faces`; its warnings are logged.

        Raises:
            ValueError: As :meth:`find_faces`.
        """
        face = self.find_faces(image, cropped)[0]
        for warning in face.warnings:
            logger.warning(warning)
        return face


class ForgeryPredictor(FaceFinder):
    """Judges photographs with a host that has the forgery skill; threads may share it.

    Args:
        vlm: A host with the skill, of either backend; or a detector alone, which gives no answers.
        detector: Finds faces; dlib's, when it is first needed, if None.
        max_new_tokens: Most tokens of an answer.
        answers: Which faces the language model is asked about: ``all``; ``flagged``, those whose
            score is not certainly real; ``none``. By default all where there is one.
        limits: How many faces are computed at once, where memory has room for so many.
        max_memory: Bytes that computing may take beside the weights; by default half of what is
            free when the first face is judged. A single face is judged whatever it takes.

    Raises:
        ValueError: Answers are wanted of a detector alone, or ``answers`` is another word.
    """

    def __init__(
        self,
        vlm: ForgeryModel | KnowledgeGuidedForgeryDetector,
        detector: FaceDetector | None = None,
        max_new_tokens: int = 64,
        answers: str | None = None,
        limits: BatchLimits | None = None,
        max_memory: int | None = None,
    ) -> None:
        vlm.eval()
        self.vlm: ForgeryModel | None = (
            None if isinstance(vlm, KnowledgeGuidedForgeryDetector) else vlm
        )
        """The host with the skill; None of a detector alone."""
        self.kfd: KnowledgeGuidedForgeryDetector = (
            vlm if isinstance(vlm, KnowledgeGuidedForgeryDetector) else vlm.kfd
        )
        """The detector."""
        self.kfd.encoder.use_for_inference()
        self.answers = _checked_answers(answers, self.vlm is None)
        self.max_new_tokens = max_new_tokens
        self.limits, self.max_memory = limits or BatchLimits(), max_memory
        self._memory = FaceMemory()
        self._face_detector = detector

    @classmethod
    def from_pretrained(
        cls,
        adapter_dir: str | PathLike | None = None,
        base_model: str | None = None,
        backend: str = "auto",
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = "auto",
        quantization: str | None = None,
        allow_download: bool = False,
        answers: str | None = None,
        cache: str | PathLike | None = None,
        max_memory: int | None = None,
        **options: Any,
    ) -> "ForgeryPredictor":
        """Load an adapter and its host.

        Args:
            adapter_dir: Folder or hub name (``owner/name[@revision]``) of what ``save_pretrained``
                or ``llava-forgery train adapter`` wrote; or of a whole model, in LLaVA's layout or
                of ``convert export-transformers``; or of a detector. By default the model that is
                shipped; where the packages of its host are missing, it gives scores and a warning
                that says what brings the answers.
            base_model: Folder or hub name of the bare host; by default the one the adapter names.
            backend: "transformers", "llava", or "auto" for the one in whose layout the folder is.
            device: Device to load onto; a GPU if there is one by default.
            dtype: Of the host's weights, as transformers takes it.
            quantization: "4bit" or "8bit"; None leaves the weights as they are.
            allow_download: Whether what the adapter's files name, its host and the detector's
                encoder, may be downloaded. A host that is given here always may.
            answers: As for the class. With ``none`` no host is loaded, unless the detector reads
                the vision tower of one.
            cache: Folder for the shipped model's host; by default $LLAVA_FORGERY_CACHE or
                ~/.cache/llava-forgery.
            max_memory: As for the class.
            options: Of the backend only, as for :meth:`.AutoForgeryModel.from_pretrained`.

        Raises:
            FileNotFoundError: Adapter or host is missing.
            ValueError: The host is not the one the adapter was trained for, a file is damaged, or
                answers are wanted of a detector.
        """
        if adapter_dir is None:
            adapter_dir, base_model, answers = shipped_model(base_model, answers, cache)
        adapter_dir = local_folder(adapter_dir)
        alone = is_detector(adapter_dir)
        answers = _checked_answers(answers, alone)
        if answers == "none" and not exported_reads_host(adapter_dir):
            kfd = load_detector_of(adapter_dir, base_model, allow_download)
            # Convolutions are a third faster on CPUs with the channels behind each other.
            kfd = kfd.to(pick_device(device)).to(memory_format=torch.channels_last)
            return cls(kfd, max_memory=max_memory)
        return cls(
            AutoForgeryModel.from_pretrained(
                adapter_dir,
                base_model,
                backend,
                device=device,
                dtype=dtype,
                quantization=quantization,
                allow_download=allow_download,
                **options,
            ),
            answers=answers,
            max_memory=max_memory,
        )

    @property
    def size(self) -> int:
        """Side S of the square that the detector sees, in pixels."""
        return self.kfd.config.encoder.image_size

    def predict(self, image: Photograph, cropped: bool = False) -> Verdict:
        """Judge the largest face.

        Args:
            image: A path, a PIL image, or an array as :func:`llava_forgery.images.to_rgb` takes it.
            cropped: The image is a face crop already; see :meth:`find_faces`.

        Raises:
            ValueError: The file is no image, or no face was found.
        """
        return self.predict_all(image, cropped)[0]

    def predict_all(self, image: Photograph, cropped: bool = False) -> list[Verdict]:
        """Judge every face, the largest first; see :meth:`predict`."""
        return self.predict_faces(self.find_faces(image, cropped))

    def predict_faces(self, faces: Sequence[FaceInput]) -> list[Verdict]:
        """Verdicts of any number of faces, in batches within ``limits`` and ``max_memory``.

        The prompt is evaluated once: the first token's likelihoods give P(yes), the same pass goes
        on to write the answer.
        """
        return self._in_batches(self._predict_faces, faces)

    def _in_batches(
        self, run: Callable[[Sequence[FaceInput]], list[Result]], faces: Sequence[FaceInput]
    ) -> list[Result]:
        """``run``'s results; where memory runs out all the same, batches are halved."""
        results: list[Result] = []
        while len(results) < len(faces):
            if self._memory.bytes is None:
                # The first face alone shows what each of the next ones takes.
                asked = None if self.answers == "none" else self.vlm
                with self._memory.counted(self.kfd, asked, self.max_new_tokens):
                    results += run(faces[:1])
            else:
                start = len(results)
                results += in_halves(run, faces[start : start + self._batch_size()])
        return results

    def _batch_size(self) -> int:
        """Most faces of a batch, by the limits and by the memory that they may take."""
        if self.max_memory is None:
            self.max_memory = free_memory(self.device) // 2
        assert self._memory.bytes is not None
        room = self.max_memory // self._memory.bytes
        return max(1, min(self.limits.size(self._memory.tokens), room))

    @torch.inference_mode()
    def _predict_faces(self, faces: Sequence[FaceInput]) -> list[Verdict]:
        detection = self._detect(faces)
        scores = detection.score.tolist()
        answers = self._answers(faces, detection, self.max_new_tokens)
        masks = detection.mask[:, 0].float().cpu().numpy()
        thresholds = self.kfd.thresholds
        return [
            Verdict(
                score=scores[i],
                p_yes=said.p_yes,
                answer=said.text,
                regions=() if said.text is None else parse_answer(said.text).regions,
                agree=agree(scores[i], said.p_yes, said.text, thresholds.fake),
                mask=masks[i],
                box=face.box,
                thresholds=thresholds,
                truncated=said.truncated,
                warnings=self._warnings(face, detection.consistency_maps[i]),
            )
            for i, (face, said) in enumerate(zip(faces, answers, strict=True))
        ]

    def _warnings(self, face: FaceInput, maps: torch.Tensor) -> tuple[str, ...]:
        calibration = self.kfd.calibration
        if calibration is None or calibration.domain is None:
            return face.warnings
        side = face.box[2] - face.box[0]
        return face.warnings + calibration.domain.warnings(face.image, side, maps)

    @property
    def device(self) -> torch.device:
        """Where the host lies, or a detector alone."""
        return self.kfd.text_features.device if self.vlm is None else self.vlm.device

    def _detect(self, faces: Sequence[FaceInput]) -> KFDOutput:
        if self.vlm is not None and not self.vlm.takes_forgery_images:
            # With what the host's own tower saw of them, which cannot be joined in general.
            return self.vlm.detect(_pixels(faces))
        detect = self.kfd if self.vlm is None else self.vlm.detect
        starts = range(0, len(faces), _DETECTED_AT_ONCE)
        parts = (faces[start : start + _DETECTED_AT_ONCE] for start in starts)
        return KFDOutput.join([detect(_pixels(part).to(self.device)) for part in parts])

    def _answers(
        self, faces: Sequence[FaceInput], detection: KFDOutput, max_new_tokens: int
    ) -> list[WrittenAnswer]:
        """What the language model says of faces, in one batch; nothing of those not asked about."""
        if self.answers == "all":
            return self._write(faces, detection, max_new_tokens)
        answers = [NOT_ASKED] * len(faces)
        if self.answers == "none":
            return answers
        low = self.kfd.thresholds.low
        asked = [i for i, score in enumerate(detection.score.tolist()) if score >= low]
        if asked:
            flagged = [faces[i] for i in asked]
            said = self._write(flagged, detection.select(asked), max_new_tokens)
            for i, answer in zip(asked, said, strict=True):
                answers[i] = answer
        return answers

    def _write(
        self,
        faces: Sequence[FaceInput],
        detection: KFDOutput,
        max_new_tokens: int,
        cite_scores: bool = True,
    ) -> list[WrittenAnswer]:
        assert self.vlm is not None
        scores = detection.score.tolist()
        prompts = [build_prompt(score if cite_scores else None) for score in scores]
        images = [Image.fromarray(face.image) for face in faces]
        return write_answers(self.vlm, prompts, images, detection, max_new_tokens=max_new_tokens)

    def predict_scores(
        self, faces: Sequence[FaceInput], cite_scores: bool = True
    ) -> tuple[list[float], list[float | None]]:
        """Scores and P(yes) of any number of faces, a forward pass for each batch and no answers.

        Args:
            faces: As for :meth:`predict_faces`.
            cite_scores: False leaves the detector's score out of the prompt: what P(yes) then
                knows of it comes from the embeddings alone.

        Returns:
            The detector's scores and the language model's P(yes), each in [0, 1]; the same that
            :meth:`predict_faces` gives, at a fraction of its time. Unless all are asked about,
            P(yes) is None for each.
        """
        rated = self._in_batches(partial(self._predict_scores, cite_scores=cite_scores), faces)
        return [score for score, _ in rated], [p_yes for _, p_yes in rated]

    @torch.inference_mode()
    def _predict_scores(
        self, faces: Sequence[FaceInput], cite_scores: bool
    ) -> list[tuple[float, float | None]]:
        detection = self._detect(faces)
        said = [NOT_ASKED] * len(faces)
        if self.answers == "all":
            said = self._write(faces, detection, max_new_tokens=1, cite_scores=cite_scores)
        p_yes = [answer.p_yes for answer in said]
        return list(zip(detection.score.tolist(), p_yes, strict=True))

    def dialogue(
        self, image: Photograph, cropped: bool = False, reuse_cache: bool = True
    ) -> Dialogue:
        """A dialogue about the largest face; its first question is the detection prompt's.

        Args:
            image: As for :meth:`predict`.
            cropped: As for :meth:`predict`.
            reuse_cache: False computes every turn anew.

        Raises:
            ValueError: As :meth:`predict`; or there is no language model to talk to.
        """
        if self.vlm is None:
            raise ValueError(
                "there is no language model to talk to: this is a detector alone, or it was loaded "
                "without answers"
            )
        face = self.largest_face(image, cropped)
        return Dialogue(self.vlm, face.image, self.max_new_tokens, reuse_cache)


def _pixels(faces: Sequence[FaceInput]) -> torch.Tensor:
    """(N, 3, S, S) in [0, 1]."""
    return torch.stack([from_bytes(face.image) for face in faces])


def _checked_answers(answers: str | None, alone: bool) -> str:
    """Which faces are asked about, by default as many as can be."""
    chosen = answers or ("none" if alone else "all")
    if chosen not in ANSWERS:
        raise ValueError(f"answers must be one of {', '.join(ANSWERS)}, got {answers!r}")
    if alone and chosen != "none":
        raise ValueError(
            f"answers={chosen!r} needs a language model, and this is a detector alone; give an "
            'adapter, or answers="none"'
        )
    return chosen
