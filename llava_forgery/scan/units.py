"""What passes between the processes of a scan."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from llava_forgery.faces.kinds import Kind
from llava_forgery.faces.video import FrameChoice
from llava_forgery.infer.predictor import FaceInput
from llava_forgery.infer.verdict import Verdict
from llava_forgery.infer.video import FrameScore, SeenFace, Track, VideoVerdict
from llava_forgery.scan.sources import Entry


@dataclass(frozen=True)
class Span(FrameChoice):
    """Some of the frames that a choice takes of a video, by their places among these."""

    number: int = 0
    """Of the span in its video, from 0."""
    start: int = 0
    """First place; ``overlap`` places before it are looked at again."""
    stop: int = 0
    """Behind the last place."""
    overlap: int = 0

    def numbers(self, length: int) -> list[int]:
        """Frame numbers from 0, ascending, of a video of ``length`` frames."""
        return super().numbers(length)[max(0, self.start - self.overlap) : self.stop]


@dataclass(frozen=True)
class Unit:
    """A piece of work: a file, or one step of a long video (:mod:`llava_forgery.scan.long`)."""

    entry: Entry
    sha256: str | None = None
    """Of a long video, which was read before."""
    span: Span | None = None
    """Its faces in these frames are found, followed and rated."""
    tracks: tuple[Track, ...] | None = None
    """These are described, and the video is done."""
    shown: tuple[SeenFace, ...] = ()
    """The face of each of ``tracks`` that is shown."""

    @property
    def path(self) -> str:
        """Of the file."""
        return self.entry.path


@dataclass
class Item:
    """A unit on its way through the stages, and what is known of it so far."""

    unit: Unit
    sha256: str | None = None
    """None until it was read, or where it could not be."""
    error: str | None = None
    """Why it cannot be judged."""
    kind: Kind | None = None
    """By what the file holds; None until it was read."""
    is_duplicate: bool = False
    """Another file of these bytes is judged in its place."""
    long: int | None = None
    """Frames that were chosen of a video that is to be judged in spans."""
    faces: list[FaceInput] = field(default_factory=list)
    """What is to be judged; of a video the faces of all its frames."""
    seen: list[SeenFace] = field(default_factory=list)
    """Of a video, where each of ``faces`` was seen."""
    scores: list[FrameScore] = field(default_factory=list)
    """Of ``seen``."""
    tracks: Sequence[Track] | None = None
    """Of the whole video, once they are known."""
    verdicts: list[VideoVerdict | Verdict] = field(default_factory=list)
    """The largest face first."""
    pictures: list[bytes | None] = field(default_factory=list)
    """JPEG of each verdict's face beside its map, None where it is not flagged."""
    masks: list[bytes | None] = field(default_factory=list)
    """PNG of each verdict's map, None where it is not flagged or none is wanted."""
    overlay: bytes | None = None
    """PNG of the whole picture beside its maps, where it is asked for and a face is flagged."""

    @property
    def path(self) -> str:
        """Of the file."""
        return self.unit.path

    @property
    def is_open(self) -> bool:
        """Whether there is anything left to judge."""
        return self.error is None and not self.is_duplicate and self.long is None
