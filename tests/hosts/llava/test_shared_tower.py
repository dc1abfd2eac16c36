"""One encoding for a model of the llava package and a detector on its own vision tower."""

import datasets
import pytest
import torch
from peft import get_peft_model
from PIL import Image

from llava_forgery.data.build_qa import build_conversations
from llava_forgery.faces.records import FEATURES
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.layouts import convert_adapter
from llava_forgery.hosts.llava.checkpoint import save_llava_adapter
from llava_forgery.hosts.llava.loading import load_llava
from llava_forgery.hosts.llava.model import attach_to_llava, detach_from_llava, llava_lora_config
from llava_forgery.hosts.llava.prompts import forgery_prefix, tokenizer_forgery_token
from llava_forgery.hosts.llava.register import register, unregister
from llava_forgery.hosts.llava.vlm import LlavaForgeryVLM
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.loading import load_adapter, load_host
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.train.llava_flags import parse_arguments
from llava_forgery.train.llava_train import run
from llava_forgery.train.stage2 import Stage2
from tests import tiny, tiny_llava, tiny_towers
from tests.tiny_llava import SIDE

tiny_llava.require_llava()
mm_utils = pytest.importorskip("llava.mm_utils")

N = 3
ASPECTS = ("square", "pad", "anyres")
# Of a square photograph as large as the tower's input: the whole, and the tiles beside it.
TILES = {"square": 1, "pad": 1, "anyres": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Checkpoints for each aspect, the twin in transformers, and a detector on their tower."""
    root = tmp_path_factory.mktemp("shared")
    for aspect in ASPECTS:
        tiny_llava.save_llava(root / f"tiny-llava-{aspect}", aspect=aspect)
    twin = tiny_llava.save_twin(root / "tiny-llava-square", root / "twin")
    # With heads that take a grid of 2 x 2.
    tiny_towers.kfd(str(twin), heads="paper").save_pretrained(root / "kfd")
    return root


def _skilled(root, aspect="square"):
    words, model, _ = tiny_llava.load_llava(root / f"tiny-llava-{aspect}")
    sizes = FPLConfig(hidden_size=1, num_layers=3, n_forgery=N)
    tower = f"kfd:{root / 'kfd'}"
    return words, attach_to_llava(model, tower, sizes, placement="placeholders").eval()


def _photos(count):
    return [Image.fromarray(tiny.picture(i, SIDE)) for i in range(count)]


def _pictures(photos):
    pixels = torch.stack([torch.from_numpy(tiny.picture(i, SIDE)) for i in range(len(photos))])
    return pixels.permute(0, 3, 1, 2).float() / 255


def _inputs(words, model, shown=(1, 1)):
    """A batch of prompts with so many images each."""
    photos = _photos(sum(shown))
    texts = [f"USER: {forgery_prefix(N, count)}Is this fake? ASSISTANT:" for count in shown]
    ids = [tokenizer_forgery_token(text, words, return_tensors="pt") for text in texts]
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=0)
    lengths = torch.tensor([len(i) for i in ids])
    processor = model.get_vision_tower().image_processor
    return {
        "input_ids": batch,
        "attention_mask": torch.arange(batch.shape[1]) < lengths[:, None],
        "images": mm_utils.process_images(photos, processor, model.config),
        "image_sizes": [photo.size for photo in photos],
    }, _pictures(photos)


class Encodings:
    """Counts the images and tiles that a model's tower encodes."""

    def __init__(self, model):
        self.calls, self.images = 0, 0
        tower = model.get_vision_tower().vision_tower
        tower.register_forward_hook(self._count, with_kwargs=True)

    def _count(self, module, inputs, named, output):
        self.calls += 1
        self.images += len(inputs[0] if inputs else named["pixel_values"])


@pytest.mark.parametrize("aspect", ASPECTS)
@torch.no_grad()
def test_equal_to_encoding_separately_and_the_tower_runs_once(root, aspect):
    words, model = _skilled(root, aspect)
    assert not model.takes_forgery_images
    inputs, pictures = _inputs(words, model, (2, 1))
    # The detector with a tower of its own; what it says has no features for the host.
    alone = KnowledgeGuidedForgeryDetector.from_pretrained(root / "kfd")(pictures)
    expected = model(**inputs, detection=alone).logits
    counted = Encodings(model)
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-4)
    assert (counted.calls, counted.images) == (1, 3 * TILES[aspect])
    # Detected before: the host encodes only the tiles that the detector did not see.
    detection = model.detect(pictures)
    torch.testing.assert_close(detection.class_logits, alone.class_logits, rtol=0, atol=1e-4)
    counted = Encodings(model)
    torch.testing.assert_close(
        model(**inputs, detection=detection).logits, expected, rtol=0, atol=1e-4
    )
    assert counted.images == 3 * (TILES[aspect] - 1)
    # Another picture, another answer.
    changed = {**inputs, "images": -inputs["images"]}
    assert not torch.allclose(model(**changed).logits, expected, atol=1e-3)


def test_generate_encodes_once_and_leaves_the_tower_as_it_was(root):
    words, model = _skilled(root)
    inputs, pictures = _inputs(words, model, (1,))
    inputs.pop("attention_mask")
    ids = inputs.pop("input_ids")
    counted = Encodings(model)
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True}
    options["return_dict_in_generate"] = True
    first = model.generate(ids, **inputs, **options).logits[0]
    assert (counted.calls, counted.images) == (1, 1)
    known = model.generate(ids, **inputs, **options, detection=model.detect(pictures)).logits[0]
    torch.testing.assert_close(known, first, rtol=0, atol=1e-4)
    assert "forward" not in vars(model.get_vision_tower())


def test_training_encodes_once_and_reaches_the_fpl(root):
    words, model = _skilled(root)
    model.requires_grad_(False)
    model.get_model().forgery_projector.requires_grad_(True)
    stage = Stage2(LlavaForgeryVLM(model, words)).train()
    inputs, _ = _inputs(words, model)
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    counted = Encodings(model)
    stage(**inputs, labels=labels)["loss"].backward()
    assert (counted.calls, counted.images) == (1, 2)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found
    assert all(".forgery_projector." in name for name in found)
    assert all(bool(gradient.abs().sum() > 0) for gradient in found.values() if gradient.ndim > 1)
    # Without placeholders the FPL still takes part, with gradients of zero.
    model.zero_grad()
    text = tokenizer_forgery_token("USER: <image>\nWho? ASSISTANT: Me", words, return_tensors="pt")
    general = {"input_ids": text[None], "images": inputs["images"][:1], "labels": text[None]}
    general["labels"] = general["labels"].masked_fill(general["labels"] < 0, -100)
    stage(**general)["loss"].backward()
    assert all(not bool(g.any()) for n, p in model.named_parameters() if (g := p.grad) is not None)
    assert set(found) == {n for n, p in model.named_parameters() if p.grad is not None}


def test_wrong_calls_are_errors(root):
    words, model = _skilled(root)
    inputs, pictures = _inputs(words, model)
    with pytest.raises(ValueError, match="give only images, no forgery_images"):
        model(**inputs, forgery_images=pictures)
    with pytest.raises(ValueError, match="not of the images that the detection was made on"):
        model(**inputs, detection=model.detect(1 - pictures))
    fields = KFDOutput.__dataclass_fields__
    found = vars(model.detect(pictures))
    one = KFDOutput(**{name: found[name][:1] for name in fields})
    with pytest.raises(ValueError, match="there are 1 forgery images"):
        model(**inputs, detection=one)
    small = {**inputs, "images": inputs["images"][..., :16, :16]}
    with pytest.raises(ValueError, match="expected images or tiles"):
        model(**small)


def test_another_tower_is_refused(root, tmp_path):
    tiny_llava.save_clip(tmp_path / "clip", seed=5)
    tiny_llava.save_llava(tmp_path / "tiny-llava")
    _, model, _ = tiny_llava.load_llava(tmp_path / "tiny-llava")
    with pytest.raises(ValueError, match="other weights than this host's"):
        attach_to_llava(model, root / "kfd")


def test_a_tower_that_is_loaded_later_is_compared_then(root, tmp_path):
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

    tiny_llava.save_clip(tmp_path / "clip", seed=5)
    folder = tiny_llava.save_llava(tmp_path / "tiny-llava")
    model = LlavaLlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    attach_to_llava(model, root / "kfd")
    picture = torch.rand(1, 3, SIDE, SIDE)
    with pytest.raises(RuntimeError, match="vision tower is not loaded"):
        model.detect(picture)
    model.get_vision_tower().load_model()
    with pytest.raises(ValueError, match="other weights than this host's"):
        model.detect(picture)
    with pytest.raises(ValueError, match="other weights than this host's"), model.detector_alone():
        pass


def test_saved_and_read_by_llavas_loader_whose_tower_comes_later(root):
    words, model = _skilled(root)
    inputs, pictures = _inputs(words, model)
    peft = get_peft_model(model, llava_lora_config(model, LoraSettings(r=2))).eval()
    folder = root / "tiny-llava-lora"
    with torch.no_grad():
        expected = peft(**inputs).logits
    save_llava_adapter(peft, folder)
    assert not any("vision" in path.name for path in (folder / "kfd").iterdir())
    _, loaded = load_llava(folder, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=0, atol=1e-4)
    from llava.model.builder import load_pretrained_model

    register()
    try:
        half = load_pretrained_model(
            str(folder), str(root / "tiny-llava-square"), folder.name,
            device_map="cpu", device="cpu",
        )[1]  # fmt: skip
    finally:
        unregister()
    inputs["images"] = inputs["images"].half()
    with torch.no_grad():
        torch.testing.assert_close(half(**inputs).logits.float(), expected, rtol=0, atol=0.03)
    # And by transformers, on the same tower.
    convert_adapter(folder, root / "moved", str(root / "twin"))
    host, processor = load_host(root / "moved", str(root / "twin"))
    vlm = load_adapter(root / "moved", host, processor)
    assert not vlm.takes_forgery_images
    with torch.no_grad():
        scores = vlm.detect(pictures).score
    torch.testing.assert_close(scores, model.detect(pictures).score, rtol=0, atol=1e-4)


def test_a_verdict_and_a_dialogue_encode_the_face_once(root):
    words, model = _skilled(root)
    predictor = ForgeryPredictor(LlavaForgeryVLM(model, words), max_new_tokens=3)
    counted = Encodings(model)
    face = tiny.picture(0, SIDE)
    verdict = predictor.predict(face, cropped=True)
    assert counted.images == 1
    alone = KnowledgeGuidedForgeryDetector.from_pretrained(root / "kfd")
    with torch.no_grad():
        assert verdict.score == pytest.approx(float(alone(_pictures([face])).score), abs=1e-5)
    dialogue = predictor.dialogue(face, cropped=True)
    dialogue.ask("Is this fake?")
    dialogue.ask("Where?")
    assert counted.images == 2
    with model.detector_alone() as detector, torch.no_grad():
        assert float(detector(_pictures([face])).score) == pytest.approx(verdict.score, abs=1e-5)


def test_detached_the_model_is_as_it_was(root):
    words, model = _skilled(root)
    _, bare, _ = tiny_llava.load_llava(root / "tiny-llava-square")
    detach_from_llava(model)
    ids = mm_utils.tokenizer_image_token("<image>\nWho?", words, return_tensors="pt")[None]
    images = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = (m(input_ids=ids, images=images).logits for m in (model, bare))
    assert torch.equal(one, two)


def test_trained_with_llavas_flags(root):
    rows = [tiny.face(i).to_row() for i in range(4)]
    faces = datasets.Dataset.from_list(rows, features=FEATURES)
    build_conversations(FacePairs(faces, 4, size=SIDE), None, root / "qa", seed=1)
    flags = {
        "model_name_or_path": root / "tiny-llava-square", "forgery_tower": f"kfd:{root / 'kfd'}",
        "data_path": root / "qa", "output_dir": root / "run-llava-lora", "lora_enable": True,
        "fpl_n_forgery": N, "lora_r": 2, "max_steps": 2, "learning_rate": 0.01,
        "per_device_train_batch_size": 2,
        "model_max_length": 2048, "report_to": "none",
    }  # fmt: skip
    run(parse_arguments([str(word) for k, v in flags.items() for word in (f"--{k}", v)]))
    words, model = load_llava(root / "run-llava-lora", device="cpu")
    assert not model.takes_forgery_images
    inputs, _ = _inputs(words, model)
    _, new = _skilled(root)
    with torch.no_grad():
        assert not torch.allclose(model(**inputs).logits, new(**inputs).logits, atol=1e-3)
