"""All invalid samples are found before the host is loaded, named at once, or left out."""

import json

import pytest
from PIL import Image

from llava_forgery.data.validation import CACHE, LISTED, find_invalid, settle_invalid
from llava_forgery.train import llava_train, samples
from llava_forgery.train.llava_flags import parse_arguments
from llava_forgery.train.llava_train import main, open_sources
from tests import tiny, tiny_llava


class _Check:
    """Rows 3 and 130 are invalid; counts what it looks at in this process."""

    def __init__(self):
        self.seen = 0

    def __call__(self, row):
        self.seen += 1
        if row in (3, 130):
            raise ZeroDivisionError(f"row {row} is broken")


@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_is_looked_at_once(tmp_path, workers):
    check = _Check()
    expected = {"skill": {3: "row 3 is broken", 130: "row 130 is broken"}}
    assert find_invalid({"skill": (check, 200)}, "one", tmp_path, workers) == expected
    assert check.seen == (200 if workers == 0 else 0)
    # The same data are not looked at again; other data are.
    check.seen = 0
    assert find_invalid({"skill": (check, 200)}, "one", tmp_path, 0) == expected
    assert check.seen == 0
    assert find_invalid({"skill": (check, 100)}, "two", tmp_path, 0) == {
        "skill": {3: "row 3 is broken"}
    }
    assert check.seen == 100


def test_invalid_samples_are_refused_or_left_out(tmp_path, caplog):
    lines = [f"sample {i}: broken\nin two lines" for i in range(25)]
    with pytest.raises(ValueError, match=r"25 of 40 samples are invalid.*--skip-invalid") as error:
        settle_invalid(lines, 40, tmp_path, False)
    said = str(error.value).splitlines()
    assert said[1] == "  sample 0: broken in two lines"
    assert said[-1] == "  ... and 15 more"
    assert len(said) == 12
    listed = (tmp_path / LISTED).read_text().splitlines()
    assert listed == [f"sample {i}: broken in two lines" for i in range(25)]
    settle_invalid(lines, 40, tmp_path, True)
    assert "25 of 40 samples are invalid and skipped" in caplog.text
    with pytest.raises(ValueError, match="25 of 25 samples are invalid"):
        settle_invalid(lines, 25, tmp_path, True)
    settle_invalid([], 25, tmp_path, False)
    assert not (tmp_path / LISTED).exists()


BAD = {
    "html": "is not an image",
    "cut": "could not be read",
    "gone": "is not a file",
    "empty": "is not an image",
    "long": "no token is left to learn from",
    "silent": "turn 1 is empty",
    "lost": "has a label and no image",
    "chat": "no token is left to learn from",
}
"""What is wrong with each sample of the fixture that is invalid."""


@pytest.fixture
def folder(tmp_path):
    """mixed.json with eight invalid samples of ten, general.json with one of two."""
    tiny_llava.require_llava()
    from llava_forgery.hosts.llava import register as llava_register

    llava_register.register()
    tiny_llava.save_llava(tmp_path / "tiny-llava", aspect="pad")

    def entry(name, image=None, question="Is it fake?", answer="It is.", **more):
        shown = "<image>\n" if image else ""
        turns = [
            {"from": "human", "value": f"{shown}{question}"},
            {"from": "gpt", "value": answer},
        ]
        return {"id": name, "conversations": turns, **({"image": image} if image else {}), **more}

    Image.fromarray(tiny.picture(0, 40)).save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "html.jpg").write_text("<!doctype html><title>404</title>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    mixed = [entry(name, f"{name}.jpg") for name in ("good", "html", "cut", "gone", "empty")]
    mixed += [
        entry("long", "good.jpg", "why " * 700),
        entry("silent", "good.jpg", answer=" "),
        entry("lost", label=1, regions=["nose"]),
        entry("chat", question="why " * 700, general=True),
        entry("text", general=True),
    ]
    (tmp_path / "mixed.json").write_text(json.dumps(mixed))
    general = [entry("g0"), entry("g1", "html.jpg")]
    (tmp_path / "general.json").write_text(json.dumps(general))
    yield tmp_path
    llava_register.unregister()


def _words(folder, *more):
    flags = {
        "model_name_or_path": folder / "tiny-llava", "forgery_tower": f"kfd:{folder / 'kfd'}",
        "data_path": folder / "mixed.json", "general_data_path": folder / "general.json",
        "output_dir": folder / "llava-lora", "lora_enable": True, "model_max_length": 512,
        "report_to": "none",
    }  # fmt: skip
    return [*(str(word) for name, value in flags.items() for word in (f"--{name}", value)), *more]


def test_all_invalid_samples_of_llavas_training_are_listed(folder, monkeypatch, caplog):
    monkeypatch.setattr(llava_train, "load_host", lambda _: pytest.fail("the host was loaded"))
    assert main(_words(folder)) == 2
    assert "9 of 12 samples are invalid" in caplog.text
    listed = (folder / "llava-lora" / LISTED).read_text().splitlines()
    assert len(listed) == 9
    for name, reason in BAD.items():
        assert [reason in line for line in listed if f"'{name}'" in line] == [True], name
    assert any("general data: sample 'g1'" in line for line in listed)
    # A second run tells the same from what the first one found.
    assert (folder / "llava-lora" / CACHE).is_file()
    monkeypatch.setattr(samples, "DialogueCheck", lambda *_: None)
    caplog.clear()
    assert main(_words(folder)) == 2
    assert "9 of 12 samples are invalid" in caplog.text


def test_invalid_samples_are_left_out_of_llavas_training(folder, caplog):
    skill, general = open_sources(parse_arguments(_words(folder, "--skip-invalid"))).values()
    assert [skill[row].id for row in range(len(skill))] == ["good", "text"]
    assert skill.general == [False, True]
    assert [length > 0 for length in skill.lengths] == [True, False]
    assert [general[row].id for row in range(len(general))] == ["g0"]
    assert "9 of 12 samples are invalid and skipped" in caplog.text
    # A mended image is looked at anew.
    (folder / "html.jpg").write_bytes((folder / "good.jpg").read_bytes())
    skill, general = open_sources(parse_arguments(_words(folder, "--skip-invalid"))).values()
    assert [skill[row].id for row in range(len(skill))] == ["good", "html", "text"]
    assert len(general) == 2


def test_the_pass_can_be_left_out(folder):
    with pytest.raises(FileNotFoundError, match=r"'gone' names the image gone\.jpg"):
        open_sources(parse_arguments(_words(folder, "--no-validate")))
    good = [e for e in json.loads((folder / "mixed.json").read_text()) if e["id"] != "silent"]
    good = [entry for entry in good if entry["id"] != "gone"]
    (folder / "mixed.json").write_text(json.dumps(good))
    skill = open_sources(parse_arguments(_words(folder, "--no-validate")))["skill"]
    assert len(skill) == 8
    assert not (folder / "llava-lora" / CACHE).exists()
    with pytest.raises(ValueError, match="--skip-invalid needs the check"):
        parse_arguments(_words(folder, "--no-validate", "--skip-invalid"))
