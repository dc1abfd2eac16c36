"""LLaVA's JSON: ours and anybody's, read strictly and piece by piece."""

import json
import random

import pytest

from llava_forgery.constants import FAKE, REAL
from llava_forgery.qa import llava_json
from llava_forgery.qa.build import build_conversation, build_prompt
from llava_forgery.qa.llava_json import (
    LlavaSample,
    image_file,
    llava_dataset,
    read_llava_json,
    write_llava_json,
)

GENERAL = [
    {
        "id": "bus",
        "image": "x.jpg",
        "conversations": [
            {"from": "human", "value": "What is this?\n<image>"},
            {"from": "gpt", "value": "A bus. "},
            {"from": "human", "value": "Red?"},
            {"from": "gpt", "value": "Yes"},
        ],
        "model": "left out",
    },
    {
        "id": 7,
        "conversations": [
            {"from": "human", "value": "Größer als 3?"},
            {"from": "gpt", "value": "    4"},
        ],
    },
    {
        "id": "two",
        "image": ["a.png", "b.png"],
        "conversations": [
            {"from": "human", "value": "<image> or <image>?"},
            {"from": "gpt", "value": "The second."},
        ],
    },
]


def conversations():
    rng = random.Random(0)
    return [
        build_conversation(FAKE, ("nose", "chin"), rng=rng, score=0.9, follow_ups=2, image="a.png"),
        build_conversation(REAL, (), rng=rng, image="b/c.png"),
        build_conversation(REAL, (), rng=rng),
    ]


def test_our_conversations_come_back(tmp_path):
    samples = [LlavaSample.from_conversation(f"{i}", c) for i, c in enumerate(conversations())]
    assert write_llava_json(samples, tmp_path / "data.json") == 3
    restored = list(read_llava_json(tmp_path / "data.json"))
    assert restored == samples
    assert [sample.to_conversation() for sample in restored] == conversations()


def test_the_file_is_llavas(tmp_path):
    conversation = build_conversation(
        FAKE, ("nose",), rng=random.Random(0), score=0.93, vary=False, task_description=False,
        image="a.png",
    )  # fmt: skip
    sample = LlavaSample.from_conversation("000000", conversation)
    write_llava_json([sample], tmp_path / "data.json")
    assert json.loads((tmp_path / "data.json").read_text()) == [
        {
            "id": "000000",
            "image": "a.png",
            "conversations": [
                {
                    "from": "human",
                    "value": "<image>\nAccording to KFD prediction, the forgery score is 0.93. "
                    "Is this a deepfake image?",
                },
                {
                    "from": "gpt",
                    "value": "Yes. This is a deepfake image, and the artifact is at the nose.",
                },
            ],
            "label": 1,
            "regions": ["nose"],
        }
    ]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_general_data_is_read_as_it_is(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(llava_json, "_CHUNK", max(chunk, 2))
    path = tmp_path / "general.json"
    path.write_text(json.dumps(GENERAL, indent=indent, ensure_ascii=False), encoding="utf-8")
    bus, text, two = read_llava_json(path)
    assert (bus.id, bus.images, bus.label) == ("bus", ("x.jpg",), None)
    assert bus.turns[1].value == "A bus. "
    assert [m.text for m in bus.to_conversation().messages] == [
        "What is this?", "A bus.", "Red?", "Yes",
    ]  # fmt: skip
    assert (text.id, text.images, text.turns[1].value) == ("7", (), "    4")
    assert two.images == ("a.png", "b.png")
    with pytest.raises(ValueError, match="'two' has 2 images"):
        two.to_conversation()
    expected = [{k: v for k, v in entry.items() if k != "model"} for entry in GENERAL]
    expected[1]["id"] = "7"
    assert [sample.to_entry() for sample in (bus, text, two)] == expected


def test_a_line_each(tmp_path):
    path = tmp_path / "general.jsonl"
    path.write_text("\n".join(json.dumps(entry) for entry in GENERAL) + "\n\n")
    assert [sample.id for sample in read_llava_json(path)] == ["bus", "7", "two"]
    path.write_text(json.dumps(GENERAL[0]) + "\n{oh\n")
    with pytest.raises(ValueError, match="line 2 is not valid JSON"):
        list(read_llava_json(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "1 times <image>, but the entry names 0 images"),
        ({"image": ["x.jpg", "y.jpg"]}, "1 times <image>, but the entry names 2 images"),
        ({"image": 3}, "entry 'bus' is not valid"),
        ({"conversations": [{"from": "bot", "value": "x"}] * 2}, "turn 0 is from 'bot'"),
        ({"conversations": GENERAL[0]["conversations"][1:]}, "turn 0 is from 'gpt'"),
        ({"conversations": GENERAL[0]["conversations"][:1]}, "a question and an answer"),
        ({"conversations": [{"from": "human"}]}, "'bus' is not valid: the key 'value' is missing"),
        ({"conversations": "hello"}, "must be a list"),
        ({"regions": ["nose"]}, "only a fake image"),
        ({"label": 1}, "needs the names of its forged regions"),
    ],
)
def test_bad_entries_are_named(tmp_path, change, message):
    (tmp_path / "data.json").write_text(json.dumps([GENERAL[1], GENERAL[0] | change]))
    samples = read_llava_json(tmp_path / "data.json")
    assert next(samples).id == "7"
    with pytest.raises(ValueError, match=f"data.json: .*{message}"):
        next(samples)


def test_invalid_entries_can_be_left_out_by_name(tmp_path, caplog):
    quoting = {"id": "html", "conversations": GENERAL[0]["conversations"]}
    (tmp_path / "data.json").write_text(json.dumps([quoting, *GENERAL]))
    samples = read_llava_json(tmp_path / "data.json", skip_invalid=True)
    assert [sample.id for sample in samples] == ["bus", "7", "two"]
    assert "skipped: entry 'html' is not valid: the turns hold 1 times <image>" in caplog.text
    (tmp_path / "data.json").write_text(json.dumps([quoting]))
    with pytest.raises(ValueError, match="no valid entries"):
        list(read_llava_json(tmp_path / "data.json", skip_invalid=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with ''"),
        ("3", "begins with '3'"),
        ("[]", "no valid entries"),
        ("[ \n", "ends after 0 entries"),
        ('[{"id": 1', "not valid JSON after its first 0"),
        ("[3]", "entry 0 is a int"),
        (json.dumps(GENERAL)[:-1], "ends after 3 entries"),
        (json.dumps(GENERAL)[:-20], "after its first 2 entries"),
        (json.dumps(GENERAL).replace("}, {\"id\": 7", "} {\"id\": 7"), "after entry 0"),
    ],
)  # fmt: skip
def test_broken_files(tmp_path, text, message):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        list(read_llava_json(tmp_path / "data.json"))


@pytest.mark.parametrize("image", ["../secret.jpg", "{}/secret.jpg", "a/../../secret.jpg"])
def test_images_stay_in_their_folder(tmp_path, image):
    image = image.format(tmp_path)
    (tmp_path / "images/a").mkdir(parents=True)
    (tmp_path / "secret.jpg").touch()
    (tmp_path / "data.json").write_text(json.dumps([GENERAL[0] | {"image": image}]))
    message = f"sample 'bus': the path '{image}' leads out of .*images; .*--allow-absolute-paths"
    for skip in (False, True):
        with pytest.raises(ValueError, match=message):
            list(read_llava_json(tmp_path / "data.json", tmp_path / "images", skip_invalid=skip))
    (sample,) = read_llava_json(
        tmp_path / "data.json", tmp_path / "images", allow_absolute_paths=True
    )
    assert image_file(tmp_path / "images", image, True).resolve() == tmp_path / "secret.jpg"
    with pytest.raises(ValueError, match="leads out of"):
        write_llava_json([sample], tmp_path / "copy.json", tmp_path / "images")
    if image.startswith("/"):
        # It does not lead out of the folder that holds it.
        assert list(read_llava_json(tmp_path / "data.json", tmp_path)) == [sample]
    # A link in the folder is its owner's.
    (tmp_path / "images/link").symlink_to(tmp_path)
    (tmp_path / "data.json").write_text(json.dumps([GENERAL[0] | {"image": "link/secret.jpg"}]))
    assert len(list(read_llava_json(tmp_path / "data.json", tmp_path / "images"))) == 1


def test_images_must_be_there(tmp_path):
    (tmp_path / "x.jpg").touch()
    (tmp_path / "data.json").write_text(json.dumps(GENERAL))
    samples = read_llava_json(tmp_path / "data.json", tmp_path)
    assert [next(samples).id, next(samples).id] == ["bus", "7"]
    with pytest.raises(FileNotFoundError, match=r"'two' names the image a\.png"):
        next(samples)
    everything = list(read_llava_json(tmp_path / "data.json"))
    with pytest.raises(FileNotFoundError, match=r"'two' names the image a\.png"):
        write_llava_json(everything, tmp_path / "copy.json", tmp_path)
    assert not (tmp_path / "copy.json").exists()
    with pytest.raises(FileNotFoundError, match="not a file"):
        next(read_llava_json(tmp_path / "none.json"))


def test_a_prompt_is_no_sample():
    with pytest.raises(ValueError, match="a question and an answer"):
        LlavaSample.from_conversation("0", build_prompt(0.3))


def test_as_a_data_set(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(GENERAL))
    rows = llava_dataset(read_llava_json(tmp_path / "data.json"))
    assert rows["image"][:] == [["x.jpg"], [], ["a.png", "b.png"]]
    assert rows["label"][:] == [None] * 3
    assert [LlavaSample.from_entry(row).id for row in rows] == ["bus", "7", "two"]
