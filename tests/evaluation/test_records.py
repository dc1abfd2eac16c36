"""An evaluation that was interrupted resumes, and its report is that of one that was not."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from llava_forgery.data.labelled import LabelledFile
from llava_forgery.evaluation.images import evaluation_images
from llava_forgery.evaluation.labelled import evaluate_labelled
from llava_forgery.evaluation.perturb import choose_perturbations
from llava_forgery.evaluation.pseudo_word import evaluate_pseudo_word
from llava_forgery.evaluation.real import evaluate_real
from llava_forgery.evaluation.records import PARTIAL, KeptRecords, weights_digest
from llava_forgery.evaluation.robustness import measure_robustness
from llava_forgery.evaluation.scorers import DetectorScorer
from llava_forgery.evaluation.simulated import evaluate_simulated
from llava_forgery.faces.records import load_faces, save_faces
from llava_forgery.hosts.pseudo_word import attach_pseudo_word
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.simulate.pairs import CENTRED, FacePairs
from tests import tiny


def _faces(folder, labels):
    crops = [replace(tiny.face(i, "test"), label=label) for i, label in enumerate(labels)]
    save_faces(crops, folder / "faces", {})
    return load_faces(folder / "faces")


def labelled(folder):
    faces, scorer = _faces(folder, [0, 1] * 3), DetectorScorer(tiny.kfd())
    return lambda out: evaluate_labelled(scorer, faces, out, batch_size=2)


def real(folder):
    folder = folder / "crops"
    rows = ["set,kind,video,identities"]
    for kind, video in (("real", "1"), ("real", "2"), ("fake_swap", "1_2")):
        (folder / "c23" / kind).mkdir(parents=True, exist_ok=True)
        rows.append(f"c23,{kind},{video},{video.replace('_', ' ')}")
        for frame in range(2):
            picture = Image.fromarray(tiny.picture(len(rows) + 5 * frame))
            picture.save(folder / "c23" / kind / f"{video}_{frame}.png")
    (folder / "identities.csv").write_text("\n".join(rows) + "\n")
    scorer = DetectorScorer(tiny.kfd())
    return lambda out: evaluate_real(scorer, folder, out, batch_size=2, resamples=5)


def robustness(folder):
    images = evaluation_images(_faces(folder, [0, 1] * 3), 64)
    scorer, kinds = DetectorScorer(tiny.kfd()), choose_perturbations(["blur"])
    options = {"batch_size": 2, "resamples": 5}
    return lambda out: measure_robustness(scorer, images, kinds, output_dir=out, **options)


def simulated(folder):
    vlm = attach_forgery(*tiny.llava(), tiny.kfd())
    predictor = ForgeryPredictor(vlm, max_new_tokens=2)
    pairs = FacePairs(_faces(folder, [0] * 3), 5, size=64, framing=CENTRED)
    return lambda out: evaluate_simulated(predictor, pairs, out, batch_size=2, overlays=3)


def pseudo_word(folder):
    images = []
    for i in range(6):
        path = folder / f"{i}.png"
        Image.fromarray(tiny.picture(i, 32)).save(path)
        images.append(LabelledFile(path, i % 2, f"set{i % 2}"))
    vlm = attach_pseudo_word(*tiny.llava()).eval()
    return lambda out: evaluate_pseudo_word(vlm, images, out, batch_size=2)


def _stop_after(monkeypatch, most):
    """Interrupt every evaluation in front of batch ``most``; returns the batches that it judged."""
    whole, judged = KeptRecords.batches, []

    def some(self, *args):
        judged.clear()
        for places in whole(self, *args):
            if len(judged) == most:
                raise KeyboardInterrupt
            judged.append(places)
            yield places

    monkeypatch.setattr(KeptRecords, "batches", some)
    return judged


@pytest.mark.parametrize("make", [labelled, real, robustness, simulated, pseudo_word])
def test_an_interrupted_evaluation_resumes(make, tmp_path, monkeypatch):
    evaluate = make(tmp_path)
    whole, out = tmp_path / "whole", tmp_path / "out"
    expected = evaluate(whole)
    with monkeypatch.context() as patch:
        _stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            evaluate(out)
    # As a kill leaves it: a record of an unfinished batch, and half a line.
    with (out / PARTIAL).open() as file:
        lines = file.readlines()
    (number, record) = json.loads(lines[-1])
    (out / PARTIAL).write_text("".join(lines) + json.dumps([number + 1, record]) + "\n[9, {")
    judged = _stop_after(monkeypatch, 99)
    assert evaluate(out) == expected
    assert [places.start for places in judged] == [2, 4]
    names = {str(path.relative_to(whole)) for path in whole.rglob("*")}
    assert {str(path.relative_to(out)) for path in out.rglob("*")} == names
    for name in names - {"overlays"}:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_records_of_another_evaluation_are_not_taken(tmp_path):
    model, settings = nn.Linear(2, 2), {"faces": "a", "sides": (1, 2)}

    def keep(settings=settings, model=model):
        return KeptRecords(tmp_path, settings, model, batch_size=1)

    with keep() as kept:
        kept.add([{"score": 0.5}])
    with keep() as kept:
        assert kept.records == [{"score": 0.5}]
    with pytest.raises(ValueError, match="faces was 'a', now 'b'. Repeat the evaluation unchanged"):
        keep({**settings, "faces": "b"})
    with pytest.raises(ValueError, match="weights was"):
        keep(model=nn.Linear(2, 2))
    # Neither refusal took anything away.
    with keep() as kept:
        with pytest.raises(ValueError, match="records 1 to 1 is not finite"):
            kept.add([{"score": float("nan")}])
        kept.add([{"score": 1.0}])
        kept.finish()
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"score": 0.5}, {"score": 1.0}]
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def test_weights_digest_knows_a_step_of_training():
    model = tiny.kfd()
    before = weights_digest(model)
    assert weights_digest(tiny.kfd()) == before
    with torch.no_grad():
        next(p for p in reversed(list(model.parameters())) if p.ndim == 2).add_(1e-3)
    assert weights_digest(model) != before
    half = nn.Linear(3, 2).bfloat16()
    assert weights_digest(half) != weights_digest(nn.Linear(3, 2))
