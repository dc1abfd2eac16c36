"""The faces of one source: read, detect, track, cut out."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from llava_forgery.faces.animation import open_video
from llava_forgery.faces.crop import Box, crop_box, crop_square, eye_angle
from llava_forgery.faces.detect import DetectedFace, FaceDetector
from llava_forgery.faces.records import FaceCrop
from llava_forgery.faces.sources import MediaSource
from llava_forgery.faces.tracks import Look, Tracker
from llava_forgery.faces.video import FrameChoice
from llava_forgery.images import read_image

# Compressed masks are not exactly black and white.
_BRIGHT = 127


@dataclass(frozen=True)
class CropSettings:
    """How faces are cut out."""

    size: int = 320
    """Side of the crops in pixels."""
    margin: float = 0.4
    """Space around the landmarks' bounding box on each side, as a share of its longer side, so that
    crops show the same part of a face whatever its size in the photograph."""
    align: bool = False
    """Whether to rotate each crop until the eyes are level."""
    largest_only: bool = True
    """Whether to keep only the largest face of a photograph, or the face of a video with the
    largest total box area over all frames. If a forged source has a mask, only faces that it
    touches are considered."""
    frames: FrameChoice = field(default_factory=FrameChoice)
    """Frames of a video to read."""

    def __post_init__(self) -> None:
        if self.size < 16 or not self.margin >= 0:
            raise ValueError(
                "size must be 16 or more, margin 0 or more; got "
                f"size={self.size}, margin={self.margin}"
            )


@dataclass(frozen=True)
class FoundFace:
    """A face that was cut out, and its area in the frame."""

    crop: FaceCrop
    area: float
    """Area of the detector's box, in pixels of the frame."""
    seconds: float | None = None
    """Time of a video's frame, from the video's beginning."""
    is_masked: bool = False
    """Whether the frame has a mask that is bright anywhere."""
    beside: int = 0
    """Number of other faces in the same frame."""


def find_faces(
    source: MediaSource, detector: FaceDetector, settings: CropSettings
) -> Iterator[FoundFace]:
    """Cut out the faces of a source, in the order of its frames.

    For a video, and for a photograph with a mask, all faces are returned:
    :func:`~llava_forgery.faces.choice.choose` then decides which are kept.

    Args:
        source: Source to read.
        detector: Face detector.
        settings: How faces are cut out.

    Raises:
        FileNotFoundError: The file or its mask is missing.
        ValueError: The file or its mask is broken, or the mask differs in frames or size.
        ImportError: The source is a video and PyAV is not installed.
    """
    if not source.is_video:
        image = read_image(source.path)
        mask = read_image(source.mask_path) if source.mask_path else None
        found = detector.detect(image)
        only = 1 if settings.largest_only and mask is None else None
        for face in found[:only]:
            cut = _cut(source, image, mask, face, settings, source.frame)
            yield replace(cut, beside=len(found) - 1)
        return
    tracker = Tracker()
    describe = getattr(detector, "describe", None)
    with closing(_frames(source, settings.frames)) as frames:
        for number, seconds, image, mask in frames:
            found = detector.detect(image)
            cuts = [_cut(source, image, mask, face, settings, number) for face in found]
            looks = [Look(cut.crop.image, cut.crop.landmarks, describe) for cut in cuts]
            tracks = tracker.update([face.box for face in found], looks)
            for cut, track in zip(cuts, tracks, strict=True):
                crop = replace(cut.crop, track=track)
                yield replace(cut, crop=crop, seconds=seconds, beside=len(found) - 1)


def _frames(
    source: MediaSource, choice: FrameChoice
) -> Iterator[tuple[int, float, np.ndarray, np.ndarray | None]]:
    """Number, seconds, pixels and mask of the chosen frames."""
    video = open_video(source.path)
    numbers = choice.numbers(len(video))
    if source.mask_path is None:
        for number, image in video.read(numbers):
            yield number, video.seconds(number), image, None
        return
    masks = open_video(source.mask_path)
    if len(masks) != len(video):
        raise ValueError(
            f"the mask {source.mask_path} has {len(masks)} frames and the video {len(video)}; "
            "every frame needs its own"
        )
    pairs = zip(video.read(numbers), masks.read(numbers), strict=True)
    for (number, image), (_, mask) in pairs:
        yield number, video.seconds(number), image, mask


def _cut(
    source: MediaSource,
    image: np.ndarray,
    mask: np.ndarray | None,
    face: DetectedFace,
    settings: CropSettings,
    frame: int | None,
) -> FoundFace:
    angle = eye_angle(face.landmarks) if settings.align else None
    crop, box, landmarks = crop_square(
        image, face.landmarks, settings.size, settings.margin, angle or 0.0
    )
    is_masked = False
    if mask is not None:
        if mask.shape != image.shape:
            raise ValueError(
                f"the mask {source.mask_path} has {mask.shape[1]} x {mask.shape[0]} pixels and "
                f"{source.path} {image.shape[1]} x {image.shape[0]}; expected the same"
            )
        is_masked = bool((mask > _BRIGHT).any())
        mask = _cut_mask(mask, box, settings.size, angle or 0.0)
    record = FaceCrop(
        image=crop,
        landmarks=landmarks,
        box=box,
        video_id=source.video_id,
        identity=source.person,
        label=source.label,
        source=source.name,
        split=source.split,
        frame=frame,
        method=source.method,
        compression=source.compression,
        angle=angle,
        mask=mask,
    )
    x0, y0, x1, y1 = face.box
    return FoundFace(record, (x1 - x0) * (y1 - y0), is_masked=is_masked)


def _cut_mask(mask: np.ndarray, box: Box, size: int, angle: float) -> np.ndarray:
    bright = crop_box(mask, box, size, angle).max(axis=2) > _BRIGHT
    return bright.astype(np.uint8) * 255
