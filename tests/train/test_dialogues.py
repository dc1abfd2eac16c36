"""Samples for LLaVA's models from JSON, YAML and data sets, mixed, and joined to batches."""

import json
import random
from functools import partial
from types import SimpleNamespace

import datasets
import pytest
import torch
from PIL import Image

from llava_forgery.constants import IGNORE_INDEX
from llava_forgery.hosts.llava.encoder import LlavaEncoder, collate
from llava_forgery.qa.mixing import mix_llava_json
from llava_forgery.train.dialogues import choose, open_source
from llava_forgery.train.samples import TrainingSamples
from llava_forgery.train.stage2 import Collator
from tests import tiny, tiny_llava


def _entry(name, image=None, answer="It is real."):
    shown = "" if image is None else "<image>\n"
    turns = [
        {"from": "human", "value": f"{shown}Is this a deepfake image?"},
        {"from": "gpt", "value": answer},
    ]
    return {"id": name, "conversations": turns} | ({} if image is None else {"image": image})


@pytest.fixture
def folder(tmp_path):
    """skill.json with three images, general.json with one image and one text, mix.yaml."""
    for i in range(3):
        Image.fromarray(tiny.picture(i, 40)).save(tmp_path / f"{i}.png")
    skill = [_entry(f"s{i}", f"{i}.png") for i in range(3)]
    general = [_entry("g0", "1.png", "A man."), _entry("g1", None, "I do not know.")]
    (tmp_path / "skill.json").write_text(json.dumps(skill))
    (tmp_path / "general.json").write_text(json.dumps(general))
    (tmp_path / "mix.yaml").write_text(
        "datasets:\n"
        "  - {json_path: skill.json, sampling_strategy: 'end:2'}\n"
        "  - {json_path: general.json}\n"
    )
    return tmp_path


def _collator(pad_id=0):
    return Collator(partial(collate, pad_id=pad_id))


def _samples(skill, general=None, max_length=2048, aspect="pad", ratio=0.5):
    tiny_llava.require_llava()
    from transformers import CLIPImageProcessor

    clip = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    config = SimpleNamespace(
        image_aspect_ratio=aspect,
        image_grid_pinpoints=tiny_llava.PINPOINTS,
        # With it no tower is asked how many tokens it makes.
        mm_resampler_type="any",
    )
    prompts = LlavaEncoder(config, tiny_llava.tokenizer(), 3, "v1", clip)
    return TrainingSamples(
        skill, general, ratio, prompts=prompts, max_length=max_length, size=tiny.SIZE
    )


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("all", 10), ("first:3", 3), ("end:3", 3), ("end:0", 0), ("first:25%", 3), ("random:40%", 4),
     ("first:99", 10)],
)  # fmt: skip
def test_strategies_of_llava_next(strategy, expected):
    rows = list(range(10))
    chosen = choose(rows, strategy, random.Random(0))
    assert len(chosen) == expected
    assert len(set(chosen)) == expected
    if strategy.startswith("end"):
        assert chosen == rows[10 - expected :]
    elif not strategy.startswith("random"):
        assert chosen == rows[:expected]
    assert choose(rows, strategy, random.Random(0)) == chosen


@pytest.mark.parametrize(
    "strategy", ["first", "all:3", "last:3", "first:x", "random:-2", "end:3.5%"]
)
def test_other_strategies_are_refused(strategy):
    with pytest.raises(ValueError, match="must be all, first:N, end:N or random:N"):
        choose([1, 2], strategy, random.Random(0))


def test_yaml_draws_from_several_files(folder):
    source = open_source(folder / "mix.yaml")
    assert [source[i].id for i in range(len(source))] == ["s1", "s2", "g0", "g1"]
    for text, message in (
        ("[]", "must hold a list `datasets`"),
        ("datasets: [{path: a}]", "data set 0 must have json_path"),
        ("datasets: [{json_path: skill.json, sampling_strategy: most}]", "data set 0: sampling"),
    ):
        (folder / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            open_source(folder / "bad.yaml")


def test_a_data_set_of_build_qa_is_read(tmp_path):
    messages = [{"role": "user", "text": "Is it fake?"}, {"role": "assistant", "text": "No."}]
    rows = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(tiny.picture(0))], "messages": [messages]},
    ).cast_column("image", datasets.Image())
    rows.save_to_disk(tmp_path / "qa")
    source = open_source(tmp_path / "qa")
    assert source[0].id == "qa[0]"
    assert source[0].turns == ("<image>\nIs it fake?", "No.")
    assert source[0].images[0].size == (tiny.SIZE, tiny.SIZE)
    assert source.lengths == [4]
    Image.fromarray(tiny.picture(0)).save(tmp_path / "secret.png")
    for path in (str(tmp_path / "secret.png"), "https://example.org/1.png"):
        linked = rows.cast_column("image", datasets.Image(decode=False)).to_list()
        linked[0]["image"] = {"bytes": None, "path": path}
        tiny.write_linked(linked, rows.features, tmp_path / "linked")
        with pytest.raises(ValueError, match=f"no picture but the path '{path}', which is not"):
            open_source(tmp_path / "linked")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match="not a data set of conversations with images"):
        open_source(tmp_path / "other")


def test_missing_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"there is no .*nothing\.json"):
        open_source(folder / "nothing.json")
    (folder / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"'s1' names the image 1\.png"):
        open_source(folder / "skill.json")


def test_skill_and_general_data_alternate(folder):
    samples = _samples(open_source(folder / "skill.json"), open_source(folder / "general.json"))
    assert samples.is_skill == [True, False] * 3
    assert [length > 0 for length in samples.lengths].count(False) in (1, 2)
    for i, is_skill in enumerate(samples.is_skill):
        ids = samples[i]["input_ids"].tolist()
        assert ids.count(-201) == (3 if is_skill else 0)
        assert ("forgery_images" in samples[i]) == is_skill
        # A sample of text alone has an empty image, which LLaVA's model counts on.
        empty = not bool(samples[i]["images"][0].any())
        assert len(samples[i]["images"]) == 1
        assert empty == (-200 not in ids) == (samples.lengths[i] < 0)


def test_a_sample_that_teaches_nothing_is_named(folder):
    with pytest.raises(ValueError, match="sample 's2': no token is left to learn from"):
        _ = _samples(open_source(folder / "skill.json"), max_length=10)[2]
    (folder / "lost.json").write_text(json.dumps([_entry("s0", "0.png"), _entry("s1")]))
    lost = json.loads((folder / "lost.json").read_text())
    lost[1]["label"] = 0
    (folder / "lost.json").write_text(json.dumps(lost))
    with pytest.raises(ValueError, match="sample 's1': it has a label and no image"):
        _ = _samples(open_source(folder / "lost.json"))[1]


def test_what_mix_wrote_trains_as_it_is(folder):
    """General images reach the host but not the detector, and text alone passes."""
    mix_llava_json(
        folder / "skill.json", folder / "general.json", folder / "mixed.json", general_ratio=0.5
    )
    samples = _samples(open_source(folder / "mixed.json"))
    assert samples.is_skill == [True, False] * 3
    kinds = set()
    for i, is_skill in enumerate(samples.is_skill):
        sample = samples[i]
        ids = sample["input_ids"].tolist()
        shown = bool(sample["images"][0].any())
        assert ids.count(-201) == (3 if is_skill else 0)
        assert ("forgery_images" in sample) == is_skill
        assert shown == (-200 in ids)
        assert bool((sample["labels"] != IGNORE_INDEX).any())
        kinds.add((is_skill, shown))
    assert kinds == {(True, True), (False, True), (False, False)}
    assert _collator()([samples[i] for i in range(6)])["forgery_images"].shape[0] == 3


def test_unmarked_general_data_among_labelled_is_told(folder, caplog):
    labelled = [_entry("s0", "0.png") | {"label": 0}, _entry("g0", "1.png"), _entry("g1")]
    (folder / "old.json").write_text(json.dumps(labelled))
    open_source(folder / "old.json")
    assert "1 of 3 entries have an image and neither" in caplog.text
    assert "'g0'" in caplog.text
    caplog.clear()
    labelled[1]["general"] = True
    (folder / "old.json").write_text(json.dumps(labelled))
    open_source(folder / "old.json")
    assert not caplog.text


def test_text_alone_trains_without_a_mark(folder):
    (folder / "texts.json").write_text(json.dumps([_entry("s0", "0.png"), _entry("t0")]))
    samples = _samples(open_source(folder / "texts.json"))
    assert samples.is_skill == [True, False]
    assert -201 not in samples[1]["input_ids"].tolist()
    assert not bool(samples[1]["images"][0].any())
    (folder / "texts.json").write_text(json.dumps([_entry("t0")]))
    with pytest.raises(ValueError, match="all 1 samples of the skill's data are general"):
        _samples(open_source(folder / "texts.json"))


def test_a_batch_is_padded_masked_and_keeps_its_images_in_order(folder):
    samples = _samples(open_source(folder / "skill.json"), open_source(folder / "general.json"))
    members = [samples[i] for i in range(4)]
    batch = _collator(7)(members)
    for row, member in enumerate(members):
        length = len(member["input_ids"])
        assert batch["attention_mask"][row].tolist() == [
            i < length for i in range(batch["input_ids"].shape[1])
        ]
        assert torch.equal(batch["input_ids"][row, :length], member["input_ids"])
        assert bool((batch["input_ids"][row, length:] == 7).all())
        assert torch.equal(batch["labels"][row, :length], member["labels"])
        assert bool((batch["labels"][row, length:] == IGNORE_INDEX).all())
        assert torch.equal(batch["images"][row], member["images"][0])
    shown = [member["forgery_images"] for member in members if "forgery_images" in member]
    assert torch.equal(batch["forgery_images"], torch.cat(shown))
    assert batch["forgery_images"].shape == (2, 3, tiny.SIZE, tiny.SIZE)
    general = [sample for sample in members if "forgery_images" not in sample]
    assert "forgery_images" not in _collator(7)(general)


def test_tiles_stay_a_list(folder):
    samples = _samples(open_source(folder / "skill.json"), aspect="anyres")
    batch = _collator()([samples[0], samples[1]])
    assert isinstance(batch["images"], list)
    assert batch["images"][0].ndim == 4
    assert batch["image_sizes"] == [(40, 40), (40, 40)]


def test_text_alone_has_a_tile_where_images_have_tiles(folder):
    # LLaVA's model then takes the same way, on which it reads its weight for the ends of rows.
    (folder / "texts.json").write_text(json.dumps([_entry("s0", "0.png"), _entry("t0")]))
    samples = _samples(open_source(folder / "texts.json"), aspect="anyres")
    batch = _collator()([samples[1]])
    assert [image.shape for image in batch["images"]] == [(1, 3, 32, 32)]
    assert isinstance(batch["images"], list)


def test_images_outside_the_image_folder_are_invalid(folder):
    (folder / "in").mkdir()
    listed = [_entry("s0", "../0.png"), _entry("s1", str(folder / "1.png"))]
    for name in ("data.json", "data.jsonl"):
        (folder / name).write_text(
            json.dumps(listed) if name == "data.json" else "\n".join(map(json.dumps, listed))
        )
        with pytest.raises(ValueError, match=r"sample 's0': the path '\.\./0\.png' leads out of"):
            open_source(folder / name, folder / "in")
        # The pass over all samples finds them, each by its name.
        source = open_source(folder / name, folder / "in", invalid=[])
        for i, path in enumerate((r"\.\./0\.png", "/.*/1\\.png")):
            with pytest.raises(ValueError, match=f"the path '{path}' leads out of"):
                _ = source[i]
        allowed = open_source(folder / name, folder / "in", allow_absolute_paths=True)
        assert [allowed[i].images[0].size for i in range(2)] == [(40, 40)] * 2
        # What was invalid with the flag's other value is looked at again.
        assert source.fingerprint() != allowed.fingerprint()
    (folder / "list.yaml").write_text("datasets: [{json_path: data.json}]")
    with pytest.raises(ValueError, match="sample 's0': the path"):
        open_source(folder / "list.yaml", folder / "in")
    assert len(open_source(folder / "list.yaml", folder / "in", allow_absolute_paths=True)) == 2
