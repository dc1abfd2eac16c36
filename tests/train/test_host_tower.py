"""A detector on the host's own tower, through the commands: both stages, saved, loaded, judged."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.faces.records import save_faces
from llava_forgery.hosts.transformers.loading import load_adapter, load_host
from llava_forgery.infer.explain import explain, grad_cam
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.tensors import from_bytes
from llava_forgery.train.stage2 import Collator, training_samples
from tests import tiny, tiny_towers


def _run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """host/, faces/, kfd/, qa/ and adapter/, each written by its command."""
    work = tmp_path_factory.mktemp("work")
    tiny_towers.saved(work / "host")
    save_faces([tiny.face(i) for i in range(4)], work / "faces", {})
    _run("train", "detector", "--faces", work / "faces", "--out", work / "kfd",
         "--base-model", work / "host", "--steps", 3, "--batch-size", 2,
         "--workers", 0)  # fmt: skip
    _run("data", "build-qa", "--faces", work / "faces", "--kfd", work / "kfd", "--out", work / "qa",
         "--pairs", 4)  # fmt: skip
    _run("train", "adapter", "--base-model", work / "host", "--kfd", work / "kfd",
         "--data", work / "qa", "--out", work / "adapter", "--steps", 3, "--fpl-warmup-steps", 3,
         "--fpl-warmup-faces", work / "faces", "--fpl-warmup-pairs", 3,
         "--batch-size", 2, "--lora-r", 2)  # fmt: skip
    return work


def test_from_training_to_a_verdict(work):
    """The score is the same from the detector alone and beside the host, before and after."""
    predictor = ForgeryPredictor.from_pretrained(work / "adapter")
    assert not predictor.vlm.takes_forgery_images
    alone = KnowledgeGuidedForgeryDetector.from_pretrained(work / "kfd")
    image = tiny.picture(2, tiny_towers.SIDE)
    verdict = predictor.predict(image, cropped=True)
    assert verdict.score == pytest.approx(
        float(alone(from_bytes(image)[None]).detach().score), abs=1e-6
    )
    dialogue = predictor.dialogue(image, cropped=True)
    assert dialogue.score == pytest.approx(verdict.score, abs=1e-6)
    # Saved once more, read once more.
    predictor.vlm.save_pretrained(work / "again")
    again = ForgeryPredictor.from_pretrained(work / "again").predict(image, cropped=True)
    assert again.score == pytest.approx(verdict.score, abs=1e-6)
    assert again.p_yes == pytest.approx(verdict.p_yes, abs=1e-5)
    assert again.answer == verdict.answer
    Image.fromarray(image).save(work / "face.png")
    result = _run("detect", work / "face.png", "--model", work / "adapter", "--cropped", "--json")
    (entry,) = json.loads(result.stdout)
    assert entry["faces"][0]["score"] == pytest.approx(verdict.score, abs=1e-6)


def test_conversations_cite_what_the_host_will_detect(work):
    rows = datasets.load_from_disk(str(work / "qa"))
    model, processor = load_host(work, str(work / "host"))
    vlm = load_adapter(work / "adapter", model, processor)
    samples = training_samples(vlm, rows, max_length=512)
    batch = Collator(vlm.prompts.collate)([samples[i] for i in range(4)])
    assert "forgery_images" not in batch
    scores = vlm.detect(from_bytes(rows[0]["image"])[None]).score
    assert float(scores[0]) == pytest.approx(rows[0]["score"], abs=1e-5)
    assert rows[0]["image"].size == (tiny_towers.SIDE, tiny_towers.SIDE)


def test_no_folder_holds_the_tower(work):
    for folder in (work / "kfd", work / "adapter/kfd"):
        names = {path.name for path in folder.iterdir() if path.suffix == ".safetensors"}
        assert names <= {"kfd.safetensors", "knowledge.safetensors"}
        tensors = load_file(folder / "kfd.safetensors")
        assert not any(name.startswith("encoder.") for name in tensors)
        config = json.loads((folder / "kfd_config.json").read_text())["config"]["encoder"]
        assert config["name"] == ("../host" if folder == work / "kfd" else "../../host")
        assert config["taps"] == [2, 3, 4]


def test_options_that_contradict_each_other(work, tmp_path):
    common = ("train", "detector", "--faces", work / "faces", "--out", tmp_path / "kfd")
    with pytest.raises(ValueError, match="either --preset or --base-model"):
        _run(*common, "--preset", "tiny", "--base-model", work / "host")
    with pytest.raises(ValueError, match="are for --base-model"):
        _run(*common, "--taps", "1,2")
    with pytest.raises(ValueError, match=r"1 \.\.\. 4"):
        _run(*common, "--base-model", work / "host", "--taps", "2,9")
    assert not (tmp_path / "kfd").exists()


def test_an_adapter_on_the_shared_tower_is_explained(work):
    predictor = ForgeryPredictor.from_pretrained(work / "adapter")
    before = predictor.vlm.state_dict().keys()
    faces = predictor.find_faces(tiny.picture(2, tiny_towers.SIDE), cropped=True)
    (found,) = explain(predictor, faces)
    # Grad-CAM is that of the detector with a tower of its own.
    alone = KnowledgeGuidedForgeryDetector.from_pretrained(work / "kfd").eval()
    expected = grad_cam(alone, from_bytes(faces[0].image)[None])
    np.testing.assert_allclose(found.grad_cam, expected[0], atol=1e-4)
    # The tower was lent: it is the host's alone again.
    assert predictor.vlm.state_dict().keys() == before
    assert predictor.vlm.kfd.encoder.tower is None
