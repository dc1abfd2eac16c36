"""From files to records in one process: the same that ``detect`` says, by whichever stages."""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from llava_forgery.faces.video import FrameChoice
from llava_forgery.infer.batch import judge_files
from llava_forgery.infer.predictor import FaceFinder, ForgeryPredictor
from llava_forgery.scan.columns import from_columns, to_columns
from llava_forgery.scan.judge import Judge, JudgeSettings, face_picture
from llava_forgery.scan.reader import Reader, ReadSettings
from llava_forgery.scan.registry import Registry
from llava_forgery.scan.results import to_result
from llava_forgery.scan.sources import list_entries
from llava_forgery.scan.stages import ScanSettings
from llava_forgery.scan.units import Item, Unit
from tests import tiny
from tests.faces.media import RedSquare, photograph
from tests.scan.making import PROVENANCE, archive, save_model

CHOICE = FrameChoice(4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predictor(model):
    loaded = model.predictor()
    loaded.face_detector = RedSquare()
    return loaded


@pytest.fixture
def root(tmp_path):
    folder = archive(tmp_path / "archive", photographs=5, videos=1)
    photograph(folder / "two.png", (20, 20, 40), (90, 30, 30))
    return folder


def units(root):
    return [Unit(entry) for entry in list_entries([str(root)])]


def read(root, size=tiny.SIZE, registry=None, cropped=True):
    reader = Reader(FaceFinder(size, RedSquare()), ReadSettings(CHOICE, cropped),
                    registry or Registry())  # fmt: skip
    return reader(units(root))


def plain(faces):
    return [
        {name: v for name, v in face.items() if name not in ("picture", "mask")} for face in faces
    ]


def assert_same(record, judged, asked_once):
    assert record["error"] == judged["error"]
    assert len(record["faces"]) == len(judged["faces"])
    for mine, theirs in zip(plain(record["faces"]), judged["faces"], strict=True):
        assert set(mine) == set(theirs)
        for name in mine:
            if name in ("p_yes", "frames") and asked_once and "frames" in mine:
                # One frame is asked about, not all of them.
                continue
            if name in ("score", "p_yes"):
                assert mine[name] == pytest.approx(theirs[name], abs=1e-5)
            elif name == "frames":
                for one, other in zip(mine[name], theirs[name], strict=True):
                    assert one == pytest.approx(other, abs=1e-5)
            else:
                assert mine[name] == theirs[name], name


@pytest.mark.parametrize("answers", [pytest.param("all", marks=pytest.mark.slow), "flagged"])
def test_records_are_those_of_detect(predictor, model, root, answers):
    items = read(root)
    settings = JudgeSettings(batch_size=3)
    if answers == "flagged":
        # An untrained detector calls every face a little forged.
        items = Judge(model.predictor("none"), settings, is_last=False)(items)
        assert {v.p_yes for item in items for v in item.verdicts} == {None}
        assert any(len(item.faces) for item in items)
    items = from_columns(Item, to_columns(Item, items))
    items = Judge(predictor, settings, flagged_only=answers == "flagged")(items)
    records = [to_result(item, PROVENANCE).record for item in items]
    detected = judge_files(predictor, [root], cropped=True, frames=CHOICE)
    by_file = {judged.file: judged.to_dict() for judged in detected}
    copies = [unit.path for unit, record in zip(units(root), records, strict=True) if not record]
    assert len(copies) == 2
    judged = [record for record in records if record]
    assert {record["file"] for record in judged} | set(copies) == set(by_file)
    for record in judged:
        assert_same(record, by_file[record["file"]], answers == "flagged")
    flagged = [face for record in judged for face in record["faces"] if record["flagged"]]
    assert flagged
    assert all(face["picture"].startswith(b"\xff\xd8") for face in flagged)


def test_the_detector_alone_asks_nobody_and_lets_pixels_go(model, predictor, root):
    (item,) = (i for i in read(root, cropped=False) if i.path.endswith("two.png"))
    settings = JudgeSettings(batch_size=1, overlays=True, masks=True)
    (judged,) = Judge(model.predictor("none"), settings)([item])
    assert [verdict.answer for verdict in judged.verdicts] == [None, None]
    scores, _ = predictor.predict_scores(FaceFinder(tiny.SIZE, RedSquare()).find_faces(item.path))
    assert [verdict.score for verdict in judged.verdicts] == pytest.approx(scores, abs=1e-5)
    assert judged.overlay.startswith(b"\x89PNG")
    masks = [np.asarray(Image.open(io.BytesIO(mask))) for mask in judged.masks]
    assert [mask.shape for mask in masks] == [(tiny.SIZE, tiny.SIZE)] * 2
    assert all(mask.max() > 0 for mask in masks)
    assert (judged.faces, judged.seen) == ([], [])
    assert to_columns(Item, [judged]).nbytes < 200_000
    assert ScanSettings(model).decisive()["weights"] == model.weights


def test_one_face_that_fails_fails_its_file_alone(model, root):
    detector, items = model.predictor("none"), read(root)
    (picked,) = (item.faces[0].image for item in items if item.path.endswith("0001.png"))

    class Failing(ForgeryPredictor):
        def predict_faces(self, faces):
            if any(np.array_equal(face.image, picked) for face in faces):
                raise RuntimeError("cuDNN error")
            return super().predict_faces(faces)

    items = Judge(Failing(detector.kfd), JudgeSettings())(items)
    failed = [item for item in items if item.error and "cuDNN" in item.error]
    assert [os.path.basename(item.path) for item in failed] == ["0001.png"]
    assert failed[0].verdicts == []
    assert sum(bool(item.verdicts) for item in items) == len(items) - 4 - 2


def test_duplicates_and_files_that_kill_their_process(root):
    registry = Registry()
    items = read(root, registry=registry)
    assert sum(item.is_duplicate for item in items) == 2
    # The same block again, as after a death: nobody becomes a duplicate of itself.
    assert [item.is_duplicate for item in read(root, registry=registry)] == [
        item.is_duplicate for item in items
    ]
    paths = [unit.path for unit in units(root)]
    killer = paths[3]
    for deaths in range(4):
        assert registry.begin(paths) == deaths
        if deaths:
            # After the first death the files are begun one by one.
            assert registry.begin([killer]) == deaths - 1
    again = read(root, registry=registry)
    (dead,) = (item for item in again if item.error and "ended its process" in item.error)
    assert dead.path == killer
    # What it is stays known, so that copies of it get its record.
    assert (len(dead.sha256), dead.kind) == (64, "picture")
    assert registry.begin(paths) == 0


def test_the_registry_knows_what_was_judged_before():
    registry = Registry()
    registry.add([("aa" * 32, "picture", "/old.jpg")])
    assert not registry.claim("aa" * 32, "picture", "/new.jpg")
    assert registry.claim("aa" * 32, "picture", "/old.jpg")
    assert registry.claim("aa" * 32, "video", "/new.mp4")


def test_errors_name_the_address_not_the_copy(root):
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe("/far/text.png", (root / "text.png").read_bytes())
    fs.pipe("/far/good.png", (root / "two.png").read_bytes())
    reader = Reader(FaceFinder(32, RedSquare()), ReadSettings(CHOICE), Registry())
    entries = [*list_entries(["memory://far"])]
    gone = entries[0]._replace(path="memory:///far/gone.png")
    good, bad, missing = reader([Unit(entry) for entry in [*entries, gone]])
    assert len(good.faces) == 2
    assert bad.error.startswith("memory:///far/text.png is not an image")
    assert "gone.png" in missing.error


def test_a_picture_of_a_face_is_small(predictor):
    (face,) = FaceFinder(224).find_faces(tiny.picture(size=300), cropped=True)
    verdict = predictor.predict_faces(predictor.find_faces(tiny.picture(), cropped=True))[0]
    assert len(face_picture(face, verdict)) < 20_000


def test_the_digest_of_a_model_is_that_of_its_files(model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model.model, copy)
    other = type(model)(str(copy))
    assert (other.weights, other.size) == (model.weights, tiny.SIZE)
    (copy / "more").write_text("x")
    with pytest.raises(ValueError, match="other files than where the scan was started"):
        other.predictor("none")
    assert type(model)(str(copy)).weights != model.weights
    with pytest.raises(FileNotFoundError, match="it is no adapter"):
        _ = type(model)(str(tmp_path)).size
    with pytest.raises(ValueError, match="answers must be one of none, flagged, all"):
        ScanSettings(model, "some")
