"""Verdicts on videos whose faces are red squares."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from llava_forgery.faces.crop import crop_square
from llava_forgery.faces.video import FrameChoice, Video
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.batch import judge_files
from llava_forgery.infer.predictor import MARGIN, ForgeryPredictor
from llava_forgery.infer.verdict import agree
from llava_forgery.infer.video import judge_video, video_overlay
from tests import tiny
from tests.faces.media import RedSquare, picture, video


@pytest.fixture(scope="module")
def predictor():
    host, processor = tiny.llava()
    vlm = attach_forgery(host, processor, tiny.kfd(), lora=LoraSettings(r=2, alpha=4))
    tiny.tell_apart(vlm.fpl, 100)
    return ForgeryPredictor(vlm, RedSquare(), max_new_tokens=5)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Ten frames: a small square in all of them, a large one from the third on."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    frames = [
        picture((10 + i, 20, 24), *([(90, 10 + 2 * i, 50)] if i > 1 else []), shape=(96, 160))
        for i in range(10)
    ]
    video(path, frames, crf=5)
    return path


def test_each_face_is_followed_and_pooled(predictor, clip):
    large, small = judge_video(predictor, clip, frames=FrameChoice(None, 2))
    assert (large.track, small.track) == (1, 0)
    assert [f.frame for f in small.frames] == [0, 2, 4, 6, 8]
    assert [f.frame for f in large.frames] == [2, 4, 6, 8]
    for face in (large, small):
        scores, p_yes = ([getattr(f, name) for f in face.frames] for name in ("score", "p_yes"))
        assert max(scores) - min(scores) > 1e-5
        assert face.score == pytest.approx(np.mean(scores))
        assert face.p_yes == pytest.approx(np.mean(p_yes))
        assert face.agree == agree(face.score, face.p_yes, face.answer)


def test_frames_are_judged_as_photographs_are(predictor, clip):
    face = judge_video(predictor, clip, frames=FrameChoice(None, 2))[1]
    for number, image in Video(clip).read([f.frame for f in face.frames]):
        # Of two squares the left one.
        found = min(RedSquare().detect(image), key=lambda f: f.box[0])
        crop, box, _ = crop_square(image, found.landmarks, predictor.size, MARGIN)
        alone = predictor.predict(crop, cropped=True)
        (rated,) = (f for f in face.frames if f.frame == number)
        assert rated.score == pytest.approx(alone.score, abs=1e-5)
        assert rated.p_yes == pytest.approx(alone.p_yes, abs=1e-5)
        assert rated.seconds == pytest.approx(number / 25)
        if number == face.frame:
            assert face.seconds == rated.seconds
            assert face.box == box
            assert (face.answer, face.regions) == (alone.answer, alone.regions)
            np.testing.assert_allclose(face.mask, alone.mask, atol=1e-5)


@pytest.mark.parametrize(
    ("reduce", "pooled"),
    [("mean", 0.5), ("median", 0.45), ("max", 0.9), ("top_k", 0.56)],
)
def test_the_frame_described_is_the_closest_to_the_pooled_score(
    predictor, clip, monkeypatch, reduce, pooled
):
    given = [0.2, 0.9, 0.5, 0.4, 0.3, 0.7]
    rates = iter(given)

    def predict_scores(faces):
        scores = [next(rates) for _ in faces]
        return scores, [1 - score for score in scores]

    monkeypatch.setattr(predictor, "predict_scores", predict_scores)
    (face,) = judge_video(predictor, clip, frames=FrameChoice(6), cropped=True, reduce=reduce)
    assert [f.score for f in face.frames] == given
    assert face.score == pytest.approx(pooled)
    shown = min(face.frames, key=lambda f: abs(f.score - pooled))
    assert face.frame == shown.frame
    # Pooled by itself: the mean of 1 - p is 1 - mean, its largest is 0.8.
    assert face.p_yes == pytest.approx({"max": 0.8, "top_k": 0.58}.get(reduce, 1 - pooled))
    assert face.agree == agree(face.score, face.p_yes, face.answer)


def test_frames_that_are_crops_are_padded_to_squares(predictor, clip, monkeypatch):
    monkeypatch.setattr(predictor.face_detector, "detect", lambda image: [])
    (face,) = judge_video(predictor, clip, frames=FrameChoice(3), cropped=True)
    assert face.box == (0.0, -32.0, 160.0, 128.0)
    assert [f.frame for f in face.frames] == [1, 5, 8]
    assert face.track == 0
    assert [warning[:30] for warning in face.warnings] == ["no face was found in the crop:"]


def test_what_is_wrong_with_a_video_is_said(predictor, tmp_path):
    video(tmp_path / "empty.mp4", [picture((0, 0, 0))] * 3)
    with pytest.raises(ValueError, match="no face was found in the frames"):
        judge_video(predictor, tmp_path / "empty.mp4")
    with pytest.raises(ValueError, match="reduce must be one of"):
        judge_video(predictor, tmp_path / "empty.mp4", reduce="mode")
    with pytest.raises(ValueError, match="neither a video nor an animation"):
        judge_video(predictor, tmp_path / "a.png", cropped=True)
    for cropped in (False, True):
        with pytest.raises(FileNotFoundError, match="is not a file"):
            judge_video(predictor, tmp_path / "nowhere.mp4", cropped=cropped)


def test_videos_among_pictures(predictor, clip, tmp_path):
    folder = tmp_path / "media"
    # A folder that is named like a video, and what file systems leave beside files.
    (folder / "frames.mp4").mkdir(parents=True)
    (folder / "._b.mp4").write_bytes(b"hidden")
    (folder / "b.mp4").write_bytes(clip.read_bytes())
    (folder / "c.mp4").write_bytes(clip.read_bytes()[:900])
    Image.fromarray(picture((30, 20, 40))).save(folder / "a.png")
    results = list(
        judge_files(predictor, [folder], overlay_dir=tmp_path / "maps", frames=FrameChoice(4))
    )
    assert [r.file.rpartition("/")[2] for r in results] == ["a.png", "b.mp4", "c.mp4"]
    assert [r.error is None for r in results] == [True, True, False]
    assert "c.mp4" in results[2].error
    photograph, film = results[0].to_dict()["faces"][0], results[1].to_dict()["faces"][0]
    added = {"frame", "seconds", "track", "frames", "segments"}
    assert set(film) == set(photograph) | added
    assert set(film["frames"][0]) == {"frame", "score", "p_yes", "seconds"}
    with Image.open(film["overlay"]) as sheet:
        assert "b.mp4" in sheet.text["Description"]


def test_without_pyav_pictures_are_still_judged(predictor, clip, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    Image.fromarray(picture((30, 20, 40))).save(tmp_path / "a.png")
    film, photograph = judge_files(predictor, [clip, tmp_path / "a.png"])
    assert "llava-forgery[video]" in film.error
    assert photograph.error is None


def test_overlay_shows_the_described_frame_of_each_face(predictor, clip):
    faces = judge_video(predictor, clip, frames=FrameChoice(5))
    sheet = np.asarray(video_overlay(clip, faces))
    rows = np.split(sheet, len(faces))
    for face, row in zip(faces, rows, strict=True):
        ((_, frame),) = Video(clip).read([face.frame])
        np.testing.assert_array_equal(row[-96:, :160], frame)


def test_frames_of_different_sizes_are_drawn(predictor, clip, monkeypatch):
    first, second = judge_video(predictor, clip, frames=FrameChoice(None, 2))
    faces = [replace(first, frame=0), replace(second, frame=1)]
    sizes = {0: (96, 160), 1: (48, 2000)}
    monkeypatch.setattr(
        Video, "read", lambda self, numbers: [(n, picture(shape=sizes[n])) for n in numbers]
    )
    sheet = video_overlay(clip, faces)
    assert sheet.width == 1920
    assert sheet.height < 2 * (96 + 46)


def test_many_faces_are_judged_in_batches_and_drawn_in_part(predictor, tmp_path):
    squares = [(4 + 19 * i, 10 + 3 * i, 9 + i % 3) for i in range(10)]
    video(tmp_path / "many.mp4", [picture(*squares, shape=(96, 200))] * 2, crf=5)
    faces = judge_video(predictor, tmp_path / "many.mp4", frames=FrameChoice(1))
    ((_, image),) = Video(tmp_path / "many.mp4").read([faces[0].frame])
    alone = {verdict.box: verdict for verdict in predictor.predict_all(image)}
    assert {face.box for face in faces} == set(alone)
    assert len(faces) == 10
    for face in faces:
        np.testing.assert_allclose(face.mask, alone[face.box].mask, atol=1e-5)
        assert face.score == pytest.approx(alone[face.box].score, abs=1e-5)
    assert video_overlay(tmp_path / "many.mp4", faces).height == 8 * (96 + 46)
