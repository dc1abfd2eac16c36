import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from llava_forgery.faces.detect import get_detector
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.prompts import collate
from llava_forgery.images import read_image, save_png
from llava_forgery.infer.batch import judge_files, list_media
from llava_forgery.infer.dialogue import NOTHING_SAID
from llava_forgery.infer.overlay import caption_of, heat_overlay, paste_mask, photograph_overlay
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.infer.verdict import Verdict, agree
from llava_forgery.kfd.calibration import Calibration, Domain, Thresholds
from llava_forgery.qa.build import build_prompt
from tests import tiny, tiny_hosts
from tests.hosts.transformers.contract import attach


@pytest.fixture(scope="module")
def predictor():
    host, processor = tiny.llava()
    vlm = attach_forgery(host, processor, tiny.kfd(), lora=LoraSettings(r=2, alpha=4))
    return ForgeryPredictor(vlm, max_new_tokens=5)


class OneFace:
    """A detector that finds the landmarks it is given."""

    def __init__(self, *faces):
        self.faces = faces

    def detect(self, image):
        from llava_forgery.faces.detect import DetectedFace

        return [DetectedFace((0.0, 0.0, 9.0, 9.0), points, 1.0) for points in self.faces]


def _verdict(score=0.9, p_yes=0.8, box=(10.0, 20.0, 42.0, 52.0)):
    mask = np.zeros((16, 16), np.float32)
    mask[4:12, 4:12] = 1
    agree = (score >= 0.5) == (p_yes >= 0.5)
    return Verdict(score, p_yes, "Yes.", ("nose",), agree, mask, box)


def test_verdict_of_a_crop(predictor):
    verdict = predictor.predict(tiny.picture(1), cropped=True)
    assert 0 <= verdict.score <= 1
    assert 0 <= verdict.p_yes <= 1
    assert verdict.mask.shape == (tiny.SIZE, tiny.SIZE)
    assert verdict.box == (0.0, 0.0, 64.0, 64.0)
    assert verdict.agree == agree(verdict.score, verdict.p_yes, verdict.answer)
    pixels = torch.from_numpy(tiny.picture(1)).permute(2, 0, 1)[None].float() / 255
    assert verdict.score == pytest.approx(float(predictor.vlm.detect(pixels).score), abs=1e-6)


@pytest.mark.parametrize(
    ("score", "p_yes", "answer", "expected"),
    [
        (0.9, 0.8, "Yes. It is fake.", True),
        (0.2, 0.4, "No.", True),
        (0.9, 0.4, "No.", False),
        (0.5, 0.49, "No.", False),
        (0.9, None, "Yes.", None),
        (0.9, float("nan"), "Yes.", None),
        (float("nan"), 0.1, "No.", None),
        (0.9, 0.8, "", None),
        (0.9, 0.8, "ghost ghost", None),
    ],
)
def test_what_cannot_be_compared_does_not_agree(score, p_yes, answer, expected):
    assert agree(score, p_yes, answer) is expected


def test_a_verdict_has_the_band_and_the_warnings_of_the_calibration(predictor, monkeypatch):
    image, kfd = tiny.picture(1), predictor.kfd
    # A crop that is framed as in training.
    framed = OneFace(tiny.landmarks() + np.float32([32, 27]))
    monkeypatch.setattr(predictor, "_face_detector", framed)
    score = predictor.predict(image, cropped=True).score
    domain = Domain((9.0, 9.0), (0.0, 1.0), 0.0, (0.0,) * 12, np.eye(12).tolist(), 1e6)
    kfd.calibration = Calibration(1.0, 0.0, Thresholds(score, 0.0, 1.0), domain)
    try:
        verdict = predictor.predict(image, cropped=True)
    finally:
        kfd.calibration = None
    assert verdict.score == pytest.approx(score)
    assert (verdict.band, len(verdict.warnings)) == ("uncertain", 1)
    found = verdict.to_dict()
    assert (found["band"], found["threshold"]) == ("uncertain", score)
    assert found["warnings"][0].startswith("the picture is blurred (sharpness ")
    assert caption_of(verdict).splitlines()[-1].endswith("see warnings)")


def test_p_yes_is_the_likelihood_of_the_two_answers(predictor):
    """From a plain forward over prompt and answer, without generate."""
    vlm, image = predictor.vlm, tiny.picture(2)
    verdict = predictor.predict(image, cropped=True)
    prompt = build_prompt(verdict.score)
    sample = vlm.prompts.encode(prompt, [Image.fromarray(image)])
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        batch = collate([sample], vlm.processor.tokenizer.pad_token_id)
        log_p = vlm(**batch, forgery_images=pixels).logits[0, -1].log_softmax(dim=0)
    yes, no = (log_p[i].exp() for i in vlm.prompts.candidate_ids(prompt)[1:])
    assert verdict.p_yes == pytest.approx(float(yes / (yes + no)), abs=1e-5)


def test_rating_gives_what_judging_gives(predictor):
    """Prompts of different length (scores 0.05 and 0.5 are cited) are padded and read alike."""
    faces = [predictor.find_faces(tiny.picture(i), cropped=True)[0] for i in range(3)]
    verdicts = predictor.predict_faces(faces)
    scores, p_yes = predictor.predict_scores(faces)
    assert scores == pytest.approx([v.score for v in verdicts], abs=1e-6)
    assert p_yes == pytest.approx([v.p_yes for v in verdicts], abs=1e-5)
    assert len(set(p_yes)) == 3
    assert predictor.predict_scores([]) == ([], [])


@pytest.mark.parametrize("model_type", tiny_hosts.family_params())
def test_a_batch_of_faces_is_judged_by_every_family(model_type):
    predictor = ForgeryPredictor(attach(model_type), max_new_tokens=3)
    images = [tiny.picture(1), tiny.picture(2)]
    found = [predictor.find_faces(image, cropped=True)[0] for image in images]
    for image, verdict in zip(images, predictor.predict_faces(found), strict=True):
        alone = predictor.predict(image, cropped=True)
        assert alone.p_yes == pytest.approx(verdict.p_yes, abs=1e-4)
        assert alone.answer == verdict.answer


def test_several_faces_are_judged_in_their_own_squares(predictor):
    photo = np.concatenate([tiny.picture(1, 128), tiny.picture(2, 128)], axis=1)
    left, right = tiny.landmarks(128), tiny.landmarks(128) + np.float32([128, 0])
    both = ForgeryPredictor(predictor.vlm, OneFace(left, right), max_new_tokens=4)
    verdicts = both.predict_all(photo)
    assert len(verdicts) == 2
    centres = [(v.box[0] + v.box[2]) / 2 for v in verdicts]
    assert centres[0] == pytest.approx(64, abs=2)
    assert centres[1] == pytest.approx(192, abs=2)
    alone = ForgeryPredictor(predictor.vlm, OneFace(right), max_new_tokens=4).predict(photo)
    assert alone.p_yes == pytest.approx(verdicts[1].p_yes, abs=1e-4)
    assert alone.score == pytest.approx(verdicts[1].score, abs=1e-5)
    assert alone.answer == verdicts[1].answer


def test_crop_that_is_not_square_keeps_its_proportions(predictor):
    wide = np.concatenate([tiny.picture(1), tiny.picture(1)], axis=1)
    (face,) = predictor.find_faces(wide, cropped=True)
    assert face.box == (0.0, -32.0, 128.0, 96.0)
    assert face.image.shape == (64, 64, 3)


@pytest.fixture(scope="module")
def photograph(predictor, samples_dir):
    """A photograph, its landmarks, and a predictor that finds faces with dlib."""
    pytest.importorskip("dlib")
    finder = ForgeryPredictor(predictor.vlm, get_detector("dlib"), max_new_tokens=3)
    image = read_image(samples_dir / "001_03.jpg")
    # Room on all sides, as in a photograph that was not cut to the face.
    image = cv2.copyMakeBorder(image, 200, 200, 200, 200, cv2.BORDER_REPLICATE)
    (face,) = finder.face_detector.detect(image)
    return image, face.landmarks, finder


def cut(photograph, margin):
    """A crop with a margin around the face, in the photograph's own pixels."""
    image, landmarks, _ = photograph
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    side = (1 + 2 * margin) * float((high - low).max())
    x, y = ((low + high) / 2 - side / 2).round().astype(int).tolist()
    side = round(side)
    return np.ascontiguousarray(image[y : y + side, x : x + side])


def test_a_wide_crop_scores_as_the_photograph(photograph):
    image, _, finder = photograph
    whole = finder.predict(image)
    for margin in (0.6, 1.0):
        crop = finder.predict(cut(photograph, margin), cropped=True)
        assert crop.warnings == ()
        assert crop.score == pytest.approx(whole.score, abs=0.01)
        assert crop.box[2] - crop.box[0] == pytest.approx(whole.box[2] - whole.box[0], rel=0.03)


@pytest.mark.parametrize("margin", [0.1, 0.2, 0.3, 0.4])
def test_a_crop_as_in_training_stays_as_it_is(photograph, margin):
    pixels = cut(photograph, margin)
    (face,) = photograph[2].find_faces(pixels, cropped=True)
    assert face.box == (0.0, 0.0, float(len(pixels)), float(len(pixels)))
    assert face.warnings == ()


@pytest.mark.parametrize("margin", [-0.05, 0.0])
def test_a_tight_crop_carries_a_warning(photograph, margin):
    pixels = cut(photograph, margin)
    verdict = photograph[2].predict(pixels, cropped=True)
    assert verdict.box == (0.0, 0.0, float(len(pixels)), float(len(pixels)))
    assert [warning[:26] for warning in verdict.warnings] == ["the crop is too tight (it "]
    assert verdict.to_dict()["warnings"] == list(verdict.warnings)


def test_a_crop_whose_framing_is_not_known_carries_a_warning(predictor, monkeypatch, caplog):
    nobody = ForgeryPredictor(predictor.vlm, OneFace(), max_new_tokens=3)
    verdict = nobody.predict(tiny.picture(), cropped=True)
    assert verdict.warnings == (
        "no face was found in the crop: whether it is framed as in training is not known",
    )
    nobody.dialogue(tiny.picture(), cropped=True)
    assert "no face was found in the crop" in caplog.text
    without = ForgeryPredictor(predictor.vlm, max_new_tokens=3)
    monkeypatch.setitem(sys.modules, "dlib", None)
    (warning,) = without.predict(tiny.picture(), cropped=True).warnings
    assert "is not known: face detection needs the package 'dlib'" in warning


def test_no_face_and_wrong_arrays_are_errors(predictor):
    nobody = ForgeryPredictor(predictor.vlm, OneFace())
    with pytest.raises(ValueError, match="no face was found in its 64 x 64 pixels.*--cropped"):
        nobody.predict(tiny.picture())
    # A photograph of this size is no face crop.
    with pytest.raises(ValueError, match="is larger, or seen from the front$"):
        nobody.predict(np.zeros((900, 1200, 3), np.uint8))
    with pytest.raises(ValueError, match="multiply floats"):
        predictor.predict(tiny.picture() / 255, cropped=True)


def test_dialogue_keeps_what_was_said(predictor):
    dialogue = predictor.dialogue(tiny.picture(3), cropped=True)
    first = dialogue.ask("Is this a deepfake image?")
    second = dialogue.ask("  Where is the artifact? ")
    assert isinstance(first, str)
    assert [m.role for m in dialogue.messages] == ["user", "assistant"] * 2
    assert dialogue.messages[0].text.endswith("Is this a deepfake image?")
    assert f"the forgery score is {dialogue.score:.2f}" in dialogue.messages[0].text
    assert dialogue.messages[2].text == "Where is the artifact?"
    assert dialogue.messages[3].text == second
    with pytest.raises(ValueError, match="empty"):
        dialogue.ask("  ")


def test_first_answer_of_a_dialogue_is_the_verdicts(predictor):
    image = tiny.picture(4)
    verdict = predictor.predict(image, cropped=True)
    answer = predictor.dialogue(image, cropped=True).ask("Is this a deepfake image?")
    assert answer == (verdict.answer or NOTHING_SAID)


def test_files_that_cannot_be_read_do_not_stop_the_others(predictor, tmp_path):
    (tmp_path / "photos/empty").mkdir(parents=True)
    Image.fromarray(tiny.picture(1)).save(tmp_path / "photos/b.png")
    (tmp_path / "photos/a.jpg").write_bytes(b"no picture")
    paths = [tmp_path / "photos", tmp_path / "photos/empty", tmp_path / "nowhere.png"]
    results = list(judge_files(predictor, paths, cropped=True, overlay_dir=tmp_path / "maps"))
    assert [r.error is None for r in results] == [False, True, False, False]
    assert "a.jpg" in results[0].error
    assert "holds no pictures or videos" in results[2].error
    assert "nowhere.png" in results[3].error
    entry = results[1].to_dict()
    assert set(entry) == {"schema_version", "file", "error", "faces"}
    assert set(entry["faces"][0]) == {
        "box", "score", "band", "threshold", "warnings", "p_yes", "answer", "truncated",
        "regions", "agree", "overlay",
    }  # fmt: skip
    with Image.open(entry["faces"][0]["overlay"]) as picture:
        assert picture.text["Software"] == "llava-forgery"


def test_pictures_of_one_name_do_not_overwrite_each_other(predictor, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(tiny.picture(1)).save(tmp_path / folder / "a.png")
    paths = [tmp_path / "one", tmp_path / "two"]
    assert len(list(list_media(paths))) == 2
    list(judge_files(predictor, paths, cropped=True, overlay_dir=tmp_path / "maps"))
    assert len(list((tmp_path / "maps").glob("a-*.png"))) == 2


def test_mask_is_pasted_at_the_box():
    pasted = paste_mask(_verdict(), 80, 100)
    rows, columns = np.nonzero(pasted > 0.5)
    # The mask's middle half of a box of 32 pixels at (10, 20).
    assert (columns.min(), columns.max() + 1) == (18, 34)
    assert (rows.min(), rows.max() + 1) == (28, 44)
    outside = paste_mask(_verdict(box=(-16.0, -16.0, 16.0, 16.0)), 80, 100)
    assert outside[0, 0] == pytest.approx(1, abs=0.1)


def test_overlay_colours_the_forged_area_alone():
    image = np.full((32, 32, 3), 90, np.uint8)
    mask = np.zeros((32, 32), np.float32)
    mask[8:16, 8:16] = 1
    drawn = heat_overlay(image, mask)
    assert np.array_equal(drawn[20:], image[20:])
    assert not np.array_equal(drawn[10, 10], image[10, 10])


def test_disagreement_is_written_into_the_picture(tmp_path):
    sheet = photograph_overlay(tiny.picture(0, 200), [_verdict(p_yes=0.1)])
    assert sheet.size == (400, 246)
    save_png(sheet, tmp_path / "a.png", "note")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.text["Description"] == "note"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]
