"""Mixing with general instruction data."""

import json
from collections import Counter

import datasets
import pytest

from llava_forgery.qa.llava_json import LlavaSample, read_llava_json
from llava_forgery.qa.mixing import mix_general, mix_llava_json


def rows(name, count, **more):
    return datasets.Dataset.from_dict({"id": [f"{name}{i}" for i in range(count)], **more})


def test_half_and_half_alternates():
    mixed = mix_general(rows("s", 10), rows("g", 40), 0.5, seed=1)["id"][:]
    assert mixed[::2] == [f"s{i}" for i in range(10)]
    assert len(set(mixed[1::2])) == 10
    assert {name[0] for name in mixed[1::2]} == {"g"}


@pytest.mark.parametrize(("ratio", "general"), [(0.0, 0), (0.2, 25), (0.75, 300)])
def test_every_skill_row_once_and_the_ratio_kept(ratio, general):
    mixed = Counter(mix_general(rows("s", 100), rows("g", 90), ratio, seed=0)["id"])
    assert [mixed[f"s{i}"] for i in range(100)] == [1] * 100
    counts = [mixed[f"g{i}"] for i in range(90)]
    assert sum(counts) == general
    # Nothing is repeated before everything was drawn.
    assert max(counts) - min(counts) <= 1


def test_the_order_is_drawn_and_seeded():
    def order(seed):
        return mix_general(rows("s", 60), rows("g", 60), 0.3, seed)["id"][:]

    assert order(1) == order(1)
    assert order(1) != order(2)
    kinds = "".join(name[0] for name in order(1))
    assert "gg" in kinds
    assert "g" in kinds[: len(kinds) // 2]
    assert "g" in kinds[len(kinds) // 2 :]


@pytest.mark.parametrize(
    ("skill", "general", "ratio", "message"),
    [
        (rows("s", 2), rows("g", 2), 1.0, r"\[0, 1\), got 1.0"),
        (rows("s", 2), rows("g", 2), -0.1, "got -0.1"),
        (rows("s", 2), rows("g", 2), float("nan"), "got nan"),
        (rows("s", 0), rows("g", 2), 0.5, "no forgery conversations"),
        (rows("s", 2), rows("g", 0), 0.5, "the general data has no rows"),
        (rows("s", 2), rows("g", 2, score=[0.1, 0.2]), 0.5, "they differ in score"),
    ],
)
def test_arguments_are_checked(skill, general, ratio, message):
    with pytest.raises(ValueError, match=message):
        mix_general(skill, general, ratio)


def entry(name, image=None):
    value = "What is this?" if image is None else "<image>\nWhat is this?"
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": "A bus."}]
    return {"id": name, "conversations": turns} | ({"image": image} if image else {})


def test_two_files_with_images_in_different_folders(tmp_path):
    for name in ("qa/images/0.png", "coco/train/x y.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "qa/data.json").write_text(json.dumps([entry("s0", "images/0.png"), entry("s1")]))
    general = [entry("g0", "train/x y.jpg"), entry("g1")]
    (tmp_path / "general.json").write_text(json.dumps(general))
    options = {"general_ratio": 0.5, "general_images": tmp_path / "coco"}
    out = tmp_path / "mixed/data.json"
    sources = (tmp_path / "qa/data.json", tmp_path / "general.json")
    # The folder of the result does not hold the images, and the training reads none outside.
    message = rf"'s0' has the image .*png, which is outside .*, .*--image-folder {tmp_path}\)"
    with pytest.raises(ValueError, match=message):
        mix_llava_json(*sources, out, **options)
    assert not out.exists()
    anywhere = {**options, "allow_absolute_paths": True}
    assert mix_llava_json(*sources, out, **anywhere) == 4
    samples = {s.id: s for s in read_llava_json(out, out.parent, allow_absolute_paths=True)}
    assert samples["g0"].images == ("../coco/train/x y.jpg",)
    with pytest.raises(ValueError, match=r"'\.\./qa/images/0\.png' leads out of"):
        list(read_llava_json(out, out.parent))
    options["image_folder"] = tmp_path
    assert mix_llava_json(*sources, out, **options) == 4
    samples = {sample.id: sample for sample in read_llava_json(out, tmp_path)}
    assert samples["g0"].images == ("coco/train/x y.jpg",)
    assert samples["s0"].images == ("qa/images/0.png",)
    beside = tmp_path / "mixed.json"
    assert mix_llava_json(*sources, beside, **options | {"image_folder": None}) == 4
    assert beside.read_text() == out.read_text()
    assert isinstance(samples["g1"], LlavaSample)
    assert samples["g1"].images == ()
    # What is general is marked, for LLaVA as one more key that it does not read.
    assert {name: sample.general for name, sample in samples.items()} == {
        "s0": False, "s1": False, "g0": True, "g1": True,
    }  # fmt: skip
    marks = {entry["id"]: entry.get("general") for entry in json.loads(out.read_text())}
    assert marks == {"s0": None, "s1": None, "g0": True, "g1": True}
    labelled = [{**entry("g0", "train/x y.jpg"), "label": 1, "regions": ["nose"]}]
    (tmp_path / "general.json").write_text(json.dumps(labelled))
    with pytest.raises(ValueError, match="'g0' is labelled 1"):
        mix_llava_json(*sources, out, **options)
    (tmp_path / "general.json").write_text(json.dumps(general))
    with pytest.raises(FileNotFoundError, match="'g0' names the image"):
        mix_llava_json(*sources, beside, general_ratio=0.5)
    general = [entry("g0", str(tmp_path / "coco/train/x y.jpg")), entry("g1")]
    (tmp_path / "general.json").write_text(json.dumps(general))
    with pytest.raises(ValueError, match=r"sample 'g0': the path '/.*x y\.jpg' leads out of .*qa"):
        mix_llava_json(*sources, out, **options | {"general_images": tmp_path / "qa"})
    # Absolute and in the image folder: it is made relative like the others.
    assert mix_llava_json(*sources, beside, **options) == 4
    assert "x y.jpg" in beside.read_text()
    assert str(tmp_path) not in beside.read_text()
