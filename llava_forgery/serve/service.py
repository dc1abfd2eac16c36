"""What a server does, without HTTP: models by name, verdicts of uploads, work that is counted."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from llava_forgery.faces.video import FrameChoice, frame_choice
from llava_forgery.infer.predictor import FaceInput, ForgeryPredictor
from llava_forgery.infer.verdict import Verdict
from llava_forgery.infer.video import judge_video
from llava_forgery.serve.admission import Admission
from llava_forgery.serve.dialogues import Dialogues
from llava_forgery.serve.engine import Busy, Engine
from llava_forgery.serve.errors import ApiError, busy
from llava_forgery.serve.jobs import Board, Job, Jobs
from llava_forgery.serve.media import Upload, frames_of, open_picture, video_file, without_path
from llava_forgery.serve.metrics import Metrics
from llava_forgery.serve.provenance import provenance, reads_provenance
from llava_forgery.serve.records import MaskForm, record
from llava_forgery.serve.settings import Settings
from llava_forgery.serve.shared import SharedPredictor

Result = TypeVar("Result")


class DetectOptions(BaseModel):
    """The options of ``detect``, as fields of a form or of JSON."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    cropped: bool = False
    frames: int | None = Field(None, ge=1)
    every: int | None = Field(None, ge=1)
    pool: Literal["mean", "median", "max", "top_k"] = "mean"
    masks: MaskForm = "none"


@dataclass(frozen=True)
class ServedModel:
    """A predictor under the name by which clients ask for it."""

    name: str
    predictor: ForgeryPredictor
    engine: Engine
    dialogues: Dialogues


class Service:
    """The models of a server and what is worked on.

    Args:
        predictors: By name; the first is taken where a client names none.
        settings: The limits.
        batch_size: Most faces of a batch.
        batch_wait: ``wait`` of :class:`Engine`, in seconds.
        board: Where other servers look for its jobs; see ``Jobs``.

    Raises:
        ValueError: No predictor.
    """

    def __init__(
        self,
        predictors: Mapping[str, ForgeryPredictor],
        settings: Settings | None = None,
        batch_size: int = 8,
        batch_wait: float | None = None,
        board: Board | None = None,
    ) -> None:
        if not predictors:
            raise ValueError("a server needs a model; give one or more")
        self.settings = settings = settings or Settings()
        self.metrics = Metrics()
        self.admission = Admission(settings)
        self.jobs = Jobs(settings, board)
        # Decoding and face finding: a picture within the limits may take a gigabyte for a moment.
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="reader")
        self.models = {
            name: self._serve(name, predictor, batch_size, batch_wait)
            for name, predictor in predictors.items()
        }
        self.metrics.active.set_function(lambda: self.admission.requests)
        self._reads_provenance = reads_provenance()

    def _serve(
        self, name: str, predictor: ForgeryPredictor, batch_size: int, batch_wait: float | None
    ) -> ServedModel:
        def observe(kind: str, faces: int, seconds: float) -> None:
            self.metrics.observe_batch(name, kind, faces, seconds)

        engine = Engine(predictor, batch_size, batch_wait, self.settings.queue, observe)
        self.metrics.queue.labels(name).set_function(lambda: engine.waiting)
        dialogues = Dialogues(predictor, self.settings.dialogues, self.settings.queue)
        self.metrics.dialogues.labels(name).set_function(lambda: len(dialogues))
        return ServedModel(name, predictor, engine, dialogues)

    @property
    def alive(self) -> bool:
        """Whether every model's thread runs."""
        return all(model.engine.alive for model in self.models.values())

    def model(self, name: str | None) -> ServedModel:
        """A model by its name.

        Raises:
            ApiError: 404 where there is none.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(
                404,
                f"there is no model {name[:60]!r}; there are: {known}",
                "model_not_found",
                "model",
            )
        return self.models[name]

    async def read(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run what decodes in one of the threads for it."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    async def find_faces(
        self, model: ServedModel, upload: Upload, cropped: bool
    ) -> list[FaceInput]:
        """The faces of a picture, the largest first.

        Raises:
            ApiError: 400 for what is no picture or has too many faces, 422 where none is found.
        """

        def find() -> list[FaceInput]:
            picture = open_picture(upload)
            try:
                return model.predictor.find_faces(picture, cropped)
            except ValueError as error:
                raise ApiError(422, str(error), "no_face") from None

        faces = await self.read(find)
        if len(faces) > self.settings.max_faces:
            raise ApiError(
                400, f"{len(faces)} faces; the limit is {self.settings.max_faces}", "media"
            )
        return faces

    async def judge_picture(self, upload: Upload, options: DetectOptions) -> dict[str, Any]:
        """The record of a picture.

        Raises:
            ApiError: As :meth:`find_faces`; 429 where the queue is full.
        """
        model = self.model(options.model)
        with model.engine.expect():
            faces = await self.find_faces(model, upload, options.cropped)
            try:
                future = model.engine.predict_faces(faces)
            except Busy as error:
                raise busy(str(error), error.retry_after) from None
        # While the faces are judged.
        stated = await self.read(self._stated, upload)
        verdicts = await asyncio.wrap_future(future)
        return {**self._record(model, upload, verdicts, options), **stated}

    def judge_video(self, upload: Upload, options: DetectOptions, job: Job) -> dict[str, Any]:
        """The record of a video; called in a job's thread.

        Raises:
            ApiError: 400 for what is no video or beyond the limits, 422 where no face is found.
        """
        model = self.model(options.model)
        choice = self.frames(options)
        with video_file(upload, self.settings) as path:
            job.total = frames_of(path, choice, self.settings)
            try:
                verdicts = judge_video(
                    SharedPredictor(model.engine, job),
                    path,
                    frames=choice,
                    cropped=options.cropped,
                    reduce=options.pool,
                )
            except ValueError as error:
                text = without_path(error, path, upload)
                none = "no face" in text
                raise ApiError(422 if none else 400, text, "no_face" if none else "media") from None
        return {**self._record(model, upload, verdicts, options), **self._stated(upload)}

    def frames(self, options: DetectOptions) -> FrameChoice:
        """Which frames of a video are judged.

        Raises:
            ApiError: 400 where both ways to choose are given.
        """
        if options.frames is not None and options.every is not None:
            raise ApiError(400, "give frames or every, one of them", "invalid", "frames")
        return frame_choice(options.frames, options.every)

    def count_frames(self, upload: Upload, options: DetectOptions) -> int:
        """How many frames of a video are to be judged; raises as :meth:`judge_video`."""
        with video_file(upload, self.settings) as path:
            return frames_of(path, self.frames(options), self.settings)

    def _record(
        self,
        model: ServedModel,
        upload: Upload,
        verdicts: list[Verdict],
        options: DetectOptions,
    ) -> dict[str, Any]:
        self.metrics.faces.labels(model.name).inc(len(verdicts))
        apart = sum(verdict.agree is False for verdict in verdicts)
        self.metrics.disagreements.labels(model.name).inc(apart)
        found = record(upload.name, verdicts, options.masks)
        return {**found, "model": model.name, "sha256": upload.sha256}

    def _stated(self, upload: Upload) -> dict[str, Any]:
        """``provenance`` of a file's record, where it can be read."""
        return {"provenance": provenance(upload)} if self._reads_provenance else {}

    async def drain(self) -> bool:
        """Refuse new work, finish what runs, and wait a little for results to be asked for."""
        ended = await self.admission.drain(self.settings.drain_seconds)
        try:
            async with asyncio.timeout(min(5, self.settings.drain_seconds)):
                await self.jobs.collected()
        except TimeoutError:
            return False
        return ended

    def close(self) -> None:
        """End all threads, after what is queued."""
        self.jobs.close()
        self._readers.shutdown()
        for model in self.models.values():
            model.dialogues.close()
            model.engine.close()
