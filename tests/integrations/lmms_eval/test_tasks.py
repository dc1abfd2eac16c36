"""The tasks, run by lmms-eval on our model and on one that only says what it is told."""

import json

import pytest
from lmms_eval.api.model import lmms
from PIL import Image

from llava_forgery.constants import FAKE, REAL
from llava_forgery.evaluation.metrics import auc, average_precision, region_scores, video_level
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.integrations.lmms_eval import tasks
from llava_forgery.integrations.lmms_eval.model import LlavaForgery, LlavaForgeryChat
from llava_forgery.integrations.lmms_eval.protocol import write_report
from llava_forgery.tensors import to_bytes
from tests import tiny


class Says(lmms):
    """Any other model of lmms-eval; it answers from a function of the row."""

    def __init__(self, words, chat=False):
        super().__init__()
        self.words, self.is_simple = words, not chat
        self.asked = []

    def generate_until(self, requests):
        said = []
        for request in requests:
            text, *others = request.args[:3]
            doc = self.task_dict[request.args[4]]["test"][request.args[3]]
            pictures = others[1](doc) if self.is_simple else others[0](doc)[0]["content"][:-1]
            assert len(pictures) == 1
            self.asked.append(text)
            said.append(self.words(doc))
        return said

    def loglikelihood(self, requests):
        raise NotImplementedError

    def generate_until_multi_round(self, requests):
        raise NotImplementedError


def _values(result, task):
    found = {key.split(",")[0]: value for key, value in result["results"][task].items()}
    return {key: value for key, value in found.items() if "stderr" not in key and key != "alias"}


@pytest.fixture(scope="module")
def direct(adapter, pairs):
    """Label, video, P(yes) and score of each image, from the predictor."""
    predictor = ForgeryPredictor.from_pretrained(adapter, device="cpu")
    predictor.max_new_tokens = 1
    rows = []
    for i in range(len(pairs)):
        pair = pairs[i]
        for label, image in ((FAKE, pair.forged), (REAL, pair.pristine)):
            verdict = predictor.predict(to_bytes(image), cropped=True)
            rows.append((label, f"{pair.row}{label}", verdict.p_yes, verdict.score))
    return [list(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    ("interface", "task"),
    [
        (LlavaForgery, "forgery_detect"),
        (LlavaForgeryChat, "forgery_detect"),
        (LlavaForgery, "forgery_detect_likelihood"),
    ],
)
def test_figures_are_the_predictors(adapter, evaluate, direct, interface, task):
    labels, videos, p_yes, scores = direct
    model = interface(str(adapter), device="cpu")
    result = evaluate(model, task, gen_kwargs="max_new_tokens=1")
    samples = sorted(result["samples"][task], key=lambda sample: sample["doc_id"])
    records = [sample["auc"] for sample in samples]
    assert [record["label"] for record in records] == labels
    given = [record["p_yes"] for record in records]
    assert given == pytest.approx(p_yes, abs=1e-5)
    # From here on lmms-eval's own values: of two images that are as good as equal, rounding in a
    # batch may put either ahead.
    found = _values(result, task)
    pooled = video_level(given, videos, labels)
    assert found["auc"] == pytest.approx(auc(labels, given), abs=1e-9)
    assert found["ap"] == pytest.approx(average_precision(labels, given), abs=1e-9)
    assert found["video_auc"] == pytest.approx(auc(pooled.labels, pooled.scores), abs=1e-9)
    assert found["video_ap"] == pytest.approx(
        average_precision(pooled.labels, pooled.scores), abs=1e-9
    )
    assert len(pooled.labels) == 6
    if task == "forgery_detect":
        assert found["p_yes_from_likelihood"] == 1
        given = [record["kfd_score"] for record in records]
        assert given == pytest.approx(scores, abs=1e-5)
        assert found["kfd_auc"] == pytest.approx(auc(labels, given), abs=1e-9)


@pytest.mark.parametrize("chat", [False, True])
def test_group_with_any_model(evaluate, chat):
    """The model is right but for the pictures of one person, of whom it says nothing."""

    def words(doc):
        if doc["identity"] == "id0":
            return "Hm."
        named = " and ".join(doc["regions"])
        return f"Yes. It is fake at the {named}." if doc["label"] else "No. Nowhere. It is real."

    model = Says(words, chat)
    result = evaluate(model, "forgery", name="llava_hf")
    # Pair 0 to 4 are made from three people in turn; two of the ten pictures at least are id0's.
    detect = result["samples"]["forgery_detect"]
    silent = sum(sample["doc"]["identity"] == "id0" for sample in detect)
    assert 2 <= silent <= 4
    found = _values(result, "forgery_detect")
    assert found["unparsed"] == silent
    assert found["accuracy"] == pytest.approx(1 - silent / 10)
    assert found["p_yes_from_likelihood"] == 0
    # Forged videos 0, 1, 1 against real ones 1, 0, 0: of nine pairs four right, four alike.
    assert found["video_auc"] == pytest.approx(6 / 9, abs=1e-9)
    assert "kfd_auc" not in found
    regions = _values(result, "forgery_regions")
    assert len(result["samples"]["forgery_regions"]) == 5
    assert regions["regions_precision"] == 1
    assert regions["unparsed_where"] == silent / 2
    turns = _values(result, "forgery_multiturn")
    assert turns["consistency"] == pytest.approx(1 - silent / 10)
    assert turns["unparsed"] == turns["unparsed_where"] == silent
    assert sum(text.startswith("User: ") for text in model.asked) == 10
    plain = [text for text in model.asked if "Assistant: " not in text]
    assert all(text.endswith(("yes or no.", "whole face.")) for text in plain)
    assert not any("KFD" in text for text in model.asked)


def test_standard_error_of_accuracy_alone(evaluate):
    result = evaluate(Says(lambda doc: "Yes."), "forgery_detect", name="other")
    found = result["results"]["forgery_detect"]
    assert found["accuracy_stderr_clt,none"] == pytest.approx((0.25 / 9) ** 0.5, abs=1e-9)
    assert found["video_auc_stderr_clt,none"] == "N/A"


def test_manifest_of_files(evaluate, tmp_path, monkeypatch):
    rows = []
    for i in range(4):
        Image.fromarray(tiny.picture(i)).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "label": i % 2, "video_id": f"v{i}"})
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("LLAVA_FORGERY_EVAL_DATA", str(tmp_path / "set.jsonl"))
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))
    model = Says(lambda doc: "Yes." if doc["label"] else "No.")
    found = _values(evaluate(model, "forgery_detect", name="other"), "forgery_detect")
    assert found["video_auc"] == found["accuracy"] == 1
    turns = _values(evaluate(model, "forgery_multiturn", name="other"), "forgery_multiturn")
    # Without known regions there is nothing to say of them.
    assert "regions_f1" not in turns
    assert turns["unparsed_where"] == 0


def _doc(label, regions=(), video="v"):
    return {"label": label, "regions": list(regions), "video_id": video}


def test_unparsed_is_wrong_in_the_ranking_too():
    fake = tasks.process_detect(_doc(FAKE), ["Perhaps."])["video_auc"]
    real = tasks.process_detect(_doc(REAL, video="w"), ["Perhaps."])["video_auc"]
    assert (fake["p_yes"], real["p_yes"]) == (0, 1)
    assert tasks.video_auc([fake, real]) == 0
    assert tasks.unparsed([fake, real]) == 2


def test_one_class_leaves_the_ranking_empty_and_says_so(caplog):
    record = tasks.process_detect(_doc(FAKE), [write_report("Yes.", 0.8, 0.7, 0.75)])["auc"]
    for name in ("frame_auc", "frame_ap", "video_auc", "video_ap", "kfd_auc", "kfd_video_auc"):
        caplog.clear()
        assert getattr(tasks, name)([record, record]) is None
        assert "needs real and fake images" in caplog.text
    assert tasks.accuracy([record, record]) == 1


def test_score_and_answer_agree_by_the_detectors_own_threshold():
    """0.6 is real to a detector that says fake from 0.75 on."""
    numbers = ((0.8, 0.6), (0.8, 0.75), (0.2, 0.6), (0.2, 0.8))
    records = [
        tasks.process_detect(_doc(FAKE), [write_report("Yes.", *pair, 0.75)])["agreement"]
        for pair in numbers
    ]
    assert tasks.agreement(records) == 0.5


def test_videos_by_hand():
    """Frames of 0.9 and 0.1 make a video of 0.5, below the real one's 0.6."""
    texts = [("a", FAKE, 0.9), ("a", FAKE, 0.1), ("b", REAL, 0.6), ("c", FAKE, 0.7)]
    records = [
        tasks.process_detect(_doc(label, video=video), [write_report("Yes.", p, 0.5, 0.5)])[
            "video_auc"
        ]
        for video, label, p in texts
    ]
    assert tasks.video_auc(records) == 0.5
    assert tasks.frame_auc(records) == pytest.approx(2 / 3)
    assert tasks.accuracy(records) == 0.75


@pytest.mark.parametrize("result", [(1.5, False), "(1.5, False)", [1.5, True]])
def test_losses_as_lmms_eval_hands_them_over(result):
    record = tasks.process_likelihood(_doc(FAKE), [result, (0.5, True)])["auc"]
    assert record["p_yes"] == pytest.approx(0.2689414213699951)
    assert record["predicted"] == REAL


def test_losses_far_apart():
    assert tasks.process_likelihood(_doc(FAKE), [(2000.0, False), (0.0, True)])["auc"]["p_yes"] == 0


def test_regions_by_hand():
    texts = ["Nose and mouth.", "Yes. The eyes.", "No.", "Hm."]
    docs = [_doc(FAKE, r) for r in (["nose"], ["eyes"], ["chin"], ["face"])]
    records = [
        tasks.process_regions(doc, [text])["regions_f1"]
        for doc, text in zip(docs, texts, strict=True)
    ]
    expected = region_scores([["nose", "mouth"], ["eyes"], [], []], [d["regions"] for d in docs])
    assert tasks.regions_f1(records) == expected.f1 == pytest.approx(4 / 7)
    assert tasks.regions_precision(records) == expected.precision
    assert tasks.regions_recall(records) == expected.recall
    assert tasks.unparsed(records) == 1


def test_set_of_one_class_keeps_its_other_figures(evaluate):
    result = evaluate(Says(lambda doc: "Yes."), "forgery_detect", name="other", limit=1)
    found = _values(result, "forgery_detect")
    assert found["video_auc"] is found["auc"] is None
    assert found["accuracy"] in (0, 1)
