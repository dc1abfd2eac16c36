"""From a benchmark's folders to conversations, to an evaluation and to DeepfakeBench."""

import cv2
import numpy as np
import pytest
from PIL import Image

from llava_forgery.constants import FAKE, REAL
from llava_forgery.data.build_qa import build_conversations
from llava_forgery.data.export_deepfakebench import export_deepfakebench
from llava_forgery.data.samples import LabelledSamples
from llava_forgery.evaluation.images import evaluation_images
from llava_forgery.faces.benchmarks.deepfakebench import read_deepfakebench
from llava_forgery.faces.benchmarks.manifest import (
    read_benchmark,
    read_manifest,
    write_manifest,
)
from llava_forgery.faces.detect import DetectedFace
from llava_forgery.faces.extract import CropSettings
from llava_forgery.faces.prepare import prepare_sources
from llava_forgery.faces.records import load_faces
from llava_forgery.faces.video import FrameChoice
from llava_forgery.qa.llava_json import read_llava_json
from tests import tiny
from tests.faces import media
from tests.faces.benchmarks import trees

SIDE, CORNER = 80, np.array([40, 8])


class RedFace(media.RedSquare):
    """A red square is a face that fills it."""

    def detect(self, image):
        return [
            DetectedFace(
                face.box, tiny.landmarks(int(face.box[2] - face.box[0])) + face.box[:2], 1.0
            )
            for face in super().detect(image)
        ]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """FaceForensics++ with videos of three frames, forged at the mouth; its prepared faces."""
    pytest.importorskip("av")
    work = tmp_path_factory.mktemp("chain")
    root = trees.forensics(work / "FF", methods=["Deepfakes"])
    shown = media.picture((*CORNER, SIDE))
    lips = tiny.landmarks(SIDE)[48:60] + CORNER
    mask = np.zeros_like(shown)
    cv2.fillConvexPoly(mask, cv2.convexHull(lips.round().astype(np.int32)), (255, 255, 255))
    for path in root.rglob("*.mp4"):
        path.unlink()
        media.video(path, [mask if "masks" in path.parts else shown] * 3)
    write_manifest(read_benchmark("ff++", root), work / "ffpp.jsonl")
    settings = CropSettings(size=96, frames=FrameChoice(2))
    sources = read_manifest(work / "ffpp.jsonl")
    report = prepare_sources(sources, work / "faces", settings=settings, detector=RedFace())
    assert (report.files, report.faces) == (12, 24)
    return work / "faces"


def test_conversations_name_the_masks_regions(faces, tmp_path):
    source = LabelledSamples(load_faces(faces, "train"), size=64)
    rows = build_conversations(source, None, tmp_path / "qa", vary=False, follow_ups=0.0)
    assert rows["label"][:] == [FAKE, REAL] * 4
    assert rows["regions"][:] == [["mouth"], []] * 4
    # The pair's two people and the forgeries of them share an identity, in one split.
    assert set(rows["identity"]) == {"000_003"}
    first = next(iter(read_llava_json(tmp_path / "qa/conversations.json", tmp_path / "qa")))
    assert first.turns[1].value.endswith("the artifact is at the mouth.")
    with Image.open(tmp_path / "qa" / first.images[0]) as picture:
        assert "made by Deepfakes, labelled so by its data set" in picture.info["Description"]


def test_evaluation_pools_a_methods_frames_by_video(faces):
    images = evaluation_images(load_faces(faces, "test"), size=64)
    groups = {images[i].group: images[i].label for i in range(len(images))}
    assert groups == {
        "youtube/c23/020": REAL,
        "youtube/c23/021": REAL,
        "Deepfakes/c23/020_021": FAKE,
        "Deepfakes/c23/021_020": FAKE,
    }


def test_deepfakebench_reads_what_is_exported(faces, tmp_path):
    rows = load_faces(faces)
    assert export_deepfakebench(rows, tmp_path / "out", "FaceForensics++", size=64) == 24
    sources = read_deepfakebench(tmp_path / "out/FaceForensics++.json", tmp_path / "out/rgb")
    assert sum(source.split == "test" for source in sources) == 8
    fake = next(s for s in sources if s.video_id == "FF-DF/c23/020_021")
    assert (fake.label, fake.method, fake.split) == (FAKE, "Deepfakes", "test")
    with Image.open(fake.path) as picture, Image.open(fake.mask_path) as mask:
        assert picture.size == mask.size == (64, 64)
        assert 0 < np.asarray(mask).mean() < 100
    with pytest.raises(ValueError, match="'Deepfakes' has no label in DFDCP"):
        export_deepfakebench(rows, tmp_path / "other", "DFDCP")
