"""``mm_forgery_placement``: the prompts of LLaVA's own tools, which hold no placeholder."""

import logging
import shutil
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from llava_forgery.files import read_json, write_json
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.layouts import change_placement
from llava_forgery.hosts.llava.hooks import FORGERY_TOKEN_INDEX, IMAGE_TOKEN_INDEX
from llava_forgery.hosts.llava.loading import load_llava
from llava_forgery.hosts.llava.model import attach_to_llava
from llava_forgery.hosts.llava.prompts import tokenizer_forgery_token
from llava_forgery.hosts.placement import ALWAYS, PLACEHOLDERS
from tests import tiny, tiny_llava, tiny_towers

tiny_llava.require_llava()
mm_utils = pytest.importorskip("llava.mm_utils")

N = 3
KINDS = ("square", "pad", "anyres", "shared tower")
MARKS = "<forgery>" * N
# Two images, text alone, an image in a later turn, one image.
PROMPTS = (
    "USER: <image>\n<image>\nWhich is fake? ASSISTANT:",
    "USER: Hello! ASSISTANT:",
    "USER: Hi ASSISTANT: Yes?</s>USER: <image>\nWhat is this? ASSISTANT:",
    "USER: <image>\nIs this photograph real? ASSISTANT: No",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tokenizer and model of each kind, whose FPL does not give zeros."""
    root = tmp_path_factory.mktemp("placement")
    made = {}
    for kind in KINDS:
        aspect = "square" if kind == "shared tower" else kind
        folder = root / f"tiny-llava-{aspect}"
        if not folder.is_dir():
            tiny_llava.save_llava(folder, aspect=aspect)
        if kind == "shared tower":
            twin = tiny_llava.save_twin(folder, root / "twin")
            tiny_towers.kfd(str(twin), heads="paper").save_pretrained(root / "shared")
        elif not (root / "kfd").is_dir():
            tiny_llava.save_kfd(root / "kfd")
        words, model, _ = tiny_llava.load_llava(folder)
        tower = root / ("shared" if kind == "shared tower" else "kfd")
        sizes = FPLConfig(hidden_size=1, num_layers=3, n_forgery=N)
        made[kind] = words, attach_to_llava(model, tower, sizes).eval()
    return made


def _batch(words, model, texts, left=False):
    """What LLaVA's own tools give for prompts; a text without an image has an empty one."""
    ids = [tokenizer_forgery_token(text, words, return_tensors="pt") for text in texts]
    images, sizes = [], []
    processor = model.get_vision_tower().image_processor
    for text in texts:
        for _ in range(max(1, text.count("<image>"))):
            photo = Image.fromarray(tiny.picture(len(images), 80)).resize((80, 60))
            sizes.append(photo.size)
            images.append(mm_utils.process_images([photo], processor, model.config)[0])
    side = "left" if left else "right"
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, True, 0, side),
        "attention_mask": pad([torch.ones(len(i), dtype=torch.bool) for i in ids], True, 0, side),
        "images": images,
        "image_sizes": sizes,
    }


@contextmanager
def _placed(model, placement):
    before, model.config.mm_forgery_placement = model.placement, placement
    try:
        yield
    finally:
        model.config.mm_forgery_placement = before


def _written(texts):
    return [text.replace("<image>", f"<image>{MARKS}") for text in texts]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_a_clients_prompt_says_what_written_placeholders_say(models, kind, left):
    words, model = models[kind]
    assert model.placement == ALWAYS
    client, written = (_batch(words, model, texts, left) for texts in (PROMPTS, _written(PROMPTS)))
    labels = [b["input_ids"].masked_fill(~b["attention_mask"], -100) for b in (client, written)]
    labels = [given.masked_fill(given < 0, -100) for given in labels]
    with torch.no_grad():
        found, expected = (
            model(**b, labels=given) for b, given in zip((client, written), labels, strict=True)
        )
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    assert float(found.loss) == pytest.approx(float(expected.loss), abs=1e-5)
    # E_forgery is in it.
    with _placed(model, PLACEHOLDERS), torch.no_grad():
        assert model(**client).logits.shape[1] < found.logits.shape[1]
    for options in ({}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
        answers = []
        for batch in (client, written):
            torch.manual_seed(0)
            given = {"max_new_tokens": 4, "do_sample": False, **options}
            answers.append(model.generate(**{"inputs" if n == "input_ids" else n: v
                                             for n, v in batch.items()}, **given))  # fmt: skip
        assert torch.equal(*answers)


def test_a_batch_without_a_mask(models):
    words, model = models["square"]
    texts = ["USER: <image>\nIs it? ASSISTANT:", "USER: Hello, what is new? ASSISTANT:"]
    batch = _batch(words, model, texts)
    width = int(batch["attention_mask"].sum(1).min())
    ids = batch["input_ids"][:, :width]
    with torch.no_grad():
        found = model(input_ids=ids, images=batch["images"]).logits
        for row in range(2):
            one = model(input_ids=ids[row : row + 1], images=batch["images"][row : row + 1]).logits
            torch.testing.assert_close(found[row, : one.shape[1]], one[0], rtol=0, atol=1e-5)


def test_rows_with_written_placeholders_stay(models):
    words, model = models["square"]
    mixed = [PROMPTS[3], *_written([PROMPTS[3]])]
    with torch.no_grad():
        first, second = model(**_batch(words, model, mixed)).logits
        alone = model(**_batch(words, model, mixed[:1])).logits
    assert first.shape == second.shape == alone[0].shape
    torch.testing.assert_close(first, alone[0], rtol=0, atol=1e-5)


def test_placeholders_leave_the_host_and_say_so_once(models, caplog):
    words, model = models["square"]
    batch = _batch(words, model, PROMPTS[3:])
    model._forgery_clients.said_unused = False
    with _placed(model, PLACEHOLDERS), torch.no_grad(), caplog.at_level(logging.WARNING):
        found, again = model(**batch).logits, model(**batch).logits
        skilled, model.__class__ = model.__class__, type(model).__mro__[2]
        own = model(**batch).logits
        model.__class__ = skilled
    assert torch.equal(found, own)
    assert torch.equal(again, own)
    assert caplog.text.count("without the skill") == 1


def test_images_that_are_missing_or_cut_are_errors(models):
    words, model = models["square"]
    batch = _batch(words, model, PROMPTS[3:])
    with pytest.raises(ValueError, match="no images are given"):
        model(**{**batch, "images": None})
    with pytest.raises(ValueError, match="take 1 images .* but 2 are given"):
        model(**{**batch, "images": batch["images"] * 2})
    with pytest.raises(ValueError, match="attention_mask has the shape"):
        model(**{**batch, "attention_mask": torch.ones(1, 1, 4, 4)})
    place = int((batch["input_ids"][0] == IMAGE_TOKEN_INDEX).nonzero()[0]) + 4
    model.config.tokenizer_model_max_length = place + N - 1
    try:
        with pytest.raises(ValueError, match="tokenizer_model_max_length"):
            model(**batch)
    finally:
        del model.config.tokenizer_model_max_length
    assert FORGERY_TOKEN_INDEX not in batch["input_ids"]


@pytest.mark.parametrize("fault", ["moved", "deleted"])
def test_a_detector_that_is_gone_is_an_error(models, tmp_path, fault):
    words, model = models["square"]
    folder = tmp_path / "llava-merged"
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    if fault == "deleted":
        shutil.rmtree(folder / "kfd")
    else:
        values = read_json(folder / "config.json")
        write_json(folder / "config.json", {**values, "mm_forgery_tower": "kfd:/moved/kfd"})
    with pytest.raises(FileNotFoundError, match="kfd holds no kfd_config.json"):
        load_llava(folder, device="cpu")


def test_the_switch_is_saved_changed_and_overridden(models, tmp_path):
    words, model = models["square"]
    folder = tmp_path / "llava-merged"
    model.save_pretrained(folder)
    words.save_pretrained(folder)

    def loaded(**options):
        found = load_llava(folder, device="cpu", **options)[1]
        return found.placement, found.crop

    assert loaded() == ("always", "face")
    assert loaded(placement="placeholders", crop="none") == ("placeholders", "none")
    change_placement(folder, crop="none")
    assert read_json(folder / "config.json")["mm_forgery_crop"] == "none"
    # As folders that are older than the switch have it.
    values = read_json(folder / "config.json")
    del values["mm_forgery_placement"], values["mm_forgery_crop"]
    write_json(folder / "config.json", values)
    assert loaded() == ("placeholders", "none")
    for wrong in ({}, {"placement": "never"}, {"crop": "eyes"}):
        with pytest.raises(ValueError, match="nothing is to be changed|must be"):
            change_placement(folder, **wrong)
