"""One encoding for host and detector: the same outputs, and the tower runs once for an image."""

import copy

import pytest
import torch
from PIL import Image
from transformers import LlavaNextImageProcessorPil

from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.loading import load_adapter, load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.prompts import collate, encode
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.qa.build import build_prompt
from tests import tiny, tiny_towers
from tests.tiny_towers import KINDS, SIDE

LORA = LoraSettings(r=2, alpha=4, dropout=0.0)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Folders of hosts and of their detectors."""
    folder = tmp_path_factory.mktemp("hosts")
    found = {}
    for kind in KINDS:
        name = tiny_towers.saved(folder / kind, kind)
        detector = tiny_towers.kfd(name)
        detector.save_pretrained(folder / f"{kind}-kfd")
        found[kind] = (name, folder / f"{kind}-kfd")
    return found


def _vlm(hosts, kind="clip", lora=LORA, **options):
    name, kfd = hosts[kind]
    model, processor = load_host(kfd, name)
    detector = KnowledgeGuidedForgeryDetector.from_pretrained(kfd, with_tower=False)
    return attach_forgery(model, processor, detector, lora=lora, **options).eval()


def _inputs(vlm, count=2):
    samples = [
        encode(
            build_prompt(0.1 + 0.35 * i, question=None if i else "Fake?"),
            vlm.processor,
            images=[Image.fromarray(tiny.picture(i, SIDE))],
            n_forgery_tokens=vlm.n_forgery,
        )
        for i in range(count)
    ]
    return collate(samples, vlm.processor.tokenizer.pad_token_id, padding_side="left")


def _pictures(count=2):
    images = torch.stack([torch.from_numpy(tiny.picture(i, SIDE)) for i in range(count)])
    return images.permute(0, 3, 1, 2).float() / 255


class Encodings:
    """Counts the images that a vision tower encodes."""

    def __init__(self, vlm):
        self.calls, self.images = 0, 0
        host = vlm.host.get_base_model() if vlm.has_lora else vlm.host
        host.get_encoder(modality="image").register_forward_hook(self._count, with_kwargs=True)

    def _count(self, module, inputs, named, output):
        self.calls += 1
        self.images += len(named["pixel_values"] if "pixel_values" in named else inputs[0])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_encoding_separately(hosts, kind):
    """Detection by the detector with a tower of its own, host by its own call."""
    vlm = _vlm(hosts, kind)
    inputs = _inputs(vlm)
    alone = KnowledgeGuidedForgeryDetector.from_pretrained(hosts[kind][1])
    with torch.no_grad():
        expected = alone(_pictures())
        found = vlm.detect(_pictures())
        for name in ("consistency_maps", "mask_logits", "class_logits"):
            torch.testing.assert_close(
                getattr(found, name), getattr(expected, name), atol=1e-6, rtol=1e-6
            )
        # A detection without features lets the host encode for itself.
        separate = vlm(**inputs, detection=expected).logits
        torch.testing.assert_close(vlm(**inputs).logits, separate, atol=1e-6, rtol=1e-6)
        # The processor rounds its pixels otherwise: both sides get the detector's here.
        shared = vlm(**inputs, detection=found).logits
        inputs["pixel_values"] = found.pixel_values
        separate = vlm(**inputs, detection=expected).logits
        torch.testing.assert_close(shared, separate, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(found.class_logits[0], found.class_logits[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}]
)
def test_generate_encodes_each_image_once(hosts, kind, options):
    vlm = _vlm(hosts, kind)
    inputs = _inputs(vlm)
    alone = KnowledgeGuidedForgeryDetector.from_pretrained(hosts[kind][1])
    with torch.no_grad():
        expected = alone(_pictures())
    options = {"max_new_tokens": 4, "do_sample": False, **options}
    separate = vlm.generate(**inputs, detection=expected, **options)
    encodings = Encodings(vlm)
    assert torch.equal(vlm.generate(**inputs, **options), separate)
    assert (encodings.calls, encodings.images) == (1, 2)
    # Beam search has left the features as they were.
    detection = vlm.detect(_pictures())
    assert torch.equal(vlm.generate(**inputs, detection=detection, **options), separate)
    assert torch.equal(vlm.generate(**inputs, detection=detection, **options), separate)
    assert (encodings.calls, encodings.images) == (2, 4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_encodes_once_and_reaches_fpl_and_lora(hosts, checkpointing):
    vlm = _vlm(hosts).train()
    assert not vlm.host.get_base_model().get_encoder(modality="image").training
    if checkpointing:
        vlm.host.gradient_checkpointing_enable()
    encodings = Encodings(vlm)
    inputs = _inputs(vlm)
    labels = inputs["input_ids"].clone()
    labels[:, :-5] = -100
    vlm(**inputs, labels=labels).loss.backward()
    assert (encodings.calls, encodings.images) == (1, 2)
    with_gradient = {n for n, p in vlm.named_parameters() if p.grad is not None}
    assert with_gradient == set(vlm.trainable_names())
    assert any(".lora_A." in name for name in with_gradient)
    assert "fpl.fuse.weight" in with_gradient


def test_predict_and_dialogue_encode_each_image_once(hosts):
    predictor = ForgeryPredictor(_vlm(hosts), max_new_tokens=4)
    encodings = Encodings(predictor.vlm)
    verdict = predictor.predict(tiny.picture(1, SIDE), cropped=True)
    assert (encodings.calls, encodings.images) == (1, 1)
    assert predictor.size == SIDE
    assert verdict.mask.shape == (SIDE, SIDE)
    # The processor's rounding is the only difference to detecting on its pixels.
    sample = _inputs(predictor.vlm)
    with torch.no_grad():
        processed = predictor.vlm._shared.encode(sample["pixel_values"]).score[1]
    assert verdict.score == pytest.approx(float(processed), abs=1e-6)

    encodings = Encodings(predictor.vlm)
    faces = [predictor.find_faces(tiny.picture(i, SIDE), cropped=True)[0] for i in range(3)]
    assert len(predictor.predict_faces(faces)) == 3
    assert (encodings.calls, encodings.images) == (1, 3)

    encodings = Encodings(predictor.vlm)
    dialogue = predictor.dialogue(tiny.picture(1, SIDE), cropped=True)
    assert dialogue.score == pytest.approx(verdict.score, abs=1e-6)
    dialogue.ask("Is this a deepfake image?")
    dialogue.ask("Where is the artifact?")
    dialogue.ask("Why?")
    assert (encodings.calls, encodings.images) == (1, 1)


def test_tower_belongs_to_the_host_alone(hosts, tmp_path):
    vlm = _vlm(hosts)
    assert not any(name.startswith("kfd.encoder.") for name, _ in vlm.named_parameters())
    inputs = _inputs(vlm)
    with torch.no_grad():
        expected = vlm(**inputs).logits
    vlm.save_pretrained(tmp_path / "adapter")
    size = sum(p.stat().st_size for p in (tmp_path / "adapter/kfd").iterdir())
    tower = vlm.host.get_base_model().get_encoder(modality="image")
    names = {f"encoder.tower.{name}" for name in tower.state_dict()}
    from safetensors.torch import load_file

    assert not names & set(load_file(tmp_path / "adapter/kfd/kfd.safetensors"))
    assert size < 2e6
    model, processor = load_host(tmp_path / "adapter", hosts["clip"][0])
    loaded = load_adapter(tmp_path / "adapter", model, processor)
    assert not loaded.takes_forgery_images
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-6, rtol=1e-6)
    # The adapter's detector is a detector like any other.
    again = KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "adapter/kfd")
    with torch.no_grad():
        torch.testing.assert_close(again(_pictures()).score, vlm.detect(_pictures()).score)


def test_a_detector_with_a_tower_of_its_own_gives_it_up(hosts):
    name, kfd = hosts["clip"]
    detector = KnowledgeGuidedForgeryDetector.from_pretrained(kfd)
    expected = detector(_pictures()).score
    vlm = attach_forgery(*load_host(kfd, name), detector).eval()
    assert detector.encoder.tower is None
    torch.testing.assert_close(vlm.detect(_pictures()).score, expected.detach())


def test_detach_gives_the_bare_host_back(hosts):
    name, kfd = hosts["clip"]
    host, processor = load_host(kfd, name)
    before = {n: t.clone() for n, t in host.state_dict().items()}
    # transformers hangs hooks of its own on the blocks at the first encoding.
    host.get_image_features(_pictures())
    hooks = sum(len(m._forward_hooks) for m in host.modules())
    detector = KnowledgeGuidedForgeryDetector.from_pretrained(kfd, with_tower=False)
    vlm = attach_forgery(host, processor, detector, lora=LORA)
    vlm.detect(_pictures())
    bare = vlm.detach()
    assert bare is host
    assert sum(len(m._forward_hooks) for m in bare.modules()) == hooks
    after = bare.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[n], t) for n, t in before.items())


def test_a_host_with_another_tower_is_refused(hosts):
    def attach(*host):
        detector = KnowledgeGuidedForgeryDetector.from_pretrained(kfd, with_tower=False)
        return attach_forgery(*host, detector)

    kfd = hosts["clip"][1]
    host, processor = tiny_towers.llava(seed=1)
    vocabulary = len(processor.tokenizer)
    with pytest.raises(ValueError, match="same sizes but with other weights"):
        attach(host, processor)
    # Nothing was changed.
    assert len(processor.tokenizer) == vocabulary
    with pytest.raises(ValueError, match="model_type clip_vision_model, this host's has siglip"):
        attach(*tiny_towers.llava("siglip"))
    with pytest.raises(ValueError, match="width 24, this host's has 32"):
        attach(*tiny_towers.llava(hidden_size=32))
    host, processor = tiny_towers.llava()
    processor.image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=[[2 * SIDE, SIDE], [SIDE, 2 * SIDE]],
    )
    with pytest.raises(ValueError, match="cuts images into tiles"):
        attach(host, processor)
    host, processor = tiny_towers.llava()
    original = type(host.model).get_image_features

    def with_sizes(pixel_values, image_sizes, **options):
        return original(host.model, pixel_values, image_sizes=image_sizes, **options)

    host.model.get_image_features = with_sizes
    with pytest.raises(ValueError, match="from pixel_values, image_sizes, not"):
        attach(host, processor)


def test_wrong_calls_are_errors(hosts):
    vlm = _vlm(hosts)
    inputs = _inputs(vlm)
    with pytest.raises(ValueError, match="no forgery_images"):
        vlm(**inputs, forgery_images=_pictures())
    with pytest.raises(ValueError, match="not of the images"):
        vlm(**inputs, detection=vlm.detect(_pictures().flip(-1)))
    with pytest.raises(ValueError, match="not of the images"):
        vlm.generate(**inputs, detection=vlm.detect(_pictures(1)))
    without = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with pytest.raises(ValueError, match="detection"):
        vlm(**without)
    with pytest.raises(ValueError, match=r"\(N, 3, 32, 32\)"):
        vlm(**without, pixel_values=inputs["pixel_values"][:, None])
    with pytest.raises(ValueError, match="sample 1 has 1 images .* only 0"):
        vlm(**without, pixel_values=inputs["pixel_values"][:1])


def test_several_images_for_a_prompt(hosts):
    """Two images in the first prompt, one in the second: one encoding of all three."""
    vlm = _vlm(hosts)
    pictures = [Image.fromarray(tiny.picture(i, SIDE)) for i in range(3)]
    samples = [
        encode(build_prompt(0.5), vlm.processor, images=shown, n_forgery_tokens=vlm.n_forgery)
        for shown in (pictures[:2], pictures[2:])
    ]
    inputs = collate(samples, vlm.processor.tokenizer.pad_token_id, padding_side="left")
    alone = KnowledgeGuidedForgeryDetector.from_pretrained(hosts["clip"][1])
    counts = {"images_per_sample": [2, 1]}
    with torch.no_grad():
        expected = alone(_pictures(3))
        separate = vlm(**inputs, detection=expected, **counts).logits
        encodings = Encodings(vlm)
        torch.testing.assert_close(vlm(**inputs, **counts).logits, separate, atol=1e-4, rtol=1e-4)
    assert (encodings.calls, encodings.images) == (1, 3)
    with torch.no_grad():
        # Placeholders say as much.
        torch.testing.assert_close(vlm(**inputs).logits, separate, atol=1e-4, rtol=1e-4)


def test_features_of_a_detection_replace_the_pixels(hosts):
    """So that a prompt can be run without its picture at hand."""
    vlm = _vlm(hosts)
    inputs = _inputs(vlm)
    detection = vlm.detect(_pictures())
    with torch.no_grad():
        expected = vlm(**inputs).logits
        kept = copy.deepcopy(detection.image_features.pooler_output)
        del inputs["pixel_values"]
        found = vlm(**inputs, detection=detection).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    now = detection.image_features.pooler_output
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
