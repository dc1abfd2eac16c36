"""The open_clip encoder, on a tiny CLIP saved to disk as open_clip stores its models."""

import json
import shutil

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_forgery.kfd.config import EncoderConfig, KFDConfig
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.encoder import default_dtype, load_open_clip
from llava_forgery.kfd.knowledge import OpenClipTextEncoder
from llava_forgery.kfd.losses import LossWeights, training_losses
from tests import tiny_towers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_towers.save_open_clip(tmp_path_factory.mktemp("clip"))


def _config(folder):
    encoder = EncoderConfig("open_clip", f"local-dir:{folder}", None, (1, 3), 24, 32)
    return KFDConfig(encoder=encoder, context_length=3)


@pytest.fixture(scope="module")
def detector(folder):
    return KnowledgeGuidedForgeryDetector.from_config(_config(folder)).eval()


def test_patch_tokens_of_the_tapped_blocks(detector, folder):
    """The taps are the blocks' outputs, counted from 1, without the class token."""
    model = load_open_clip(_config(folder).encoder)
    outputs = []
    for block in model.visual.transformer.resblocks:
        block.register_forward_hook(lambda m, i, o: outputs.append(o))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        model.visual((images - detector.encoder.mean) / detector.encoder.std)
        taps = detector.encoder(images)
    for tap, number in zip(taps, (1, 3), strict=True):
        expected = outputs[number - 1][:, 1:].transpose(1, 2).reshape(2, 32, 8, 8)
        torch.testing.assert_close(tap, expected, atol=1e-5, rtol=1e-5)


def test_towers_are_frozen_and_the_context_learns(detector):
    detector.train()
    assert not detector.encoder.training
    assert not any(p.requires_grad for p in detector.encoder.parameters())
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:16, 8:16] = 1
    _, losses = training_losses(
        detector, torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), mask, LossWeights()
    )
    losses["loss"].backward()
    assert float(detector.knowledge.context.grad.abs().sum()) > 0
    trained = {n.split(".")[0] for n, p in detector.named_parameters() if p.requires_grad}
    assert trained == {"consistency", "locator", "classifier", "knowledge"}
    assert [n for n, p in detector.knowledge.named_parameters() if p.requires_grad] == ["context"]
    detector.zero_grad()
    detector.eval()


def test_context_stands_before_the_words_inside_the_text_encoder(folder):
    """Context rows that equal the letters' own embeddings change nothing; others do."""
    model = load_open_clip(_config(folder).encoder)
    encoder = OpenClipTextEncoder(model, f"local-dir:{folder}")
    tokens = encoder.tokenize(["a real face"], 3)
    plain = model.encode_text(tokens)
    letters = encoder.embedding(tokens[0, 1:4])
    torch.testing.assert_close(encoder.encode(tokens, letters), plain)
    changed = encoder.encode(tokens, torch.randn_like(letters))
    assert torch.cosine_similarity(changed, plain).item() < 0.999


def test_too_long_description_is_an_error(folder):
    model = load_open_clip(_config(folder).encoder)
    encoder = OpenClipTextEncoder(model, f"local-dir:{folder}")
    with pytest.raises(ValueError, match="too long"):
        encoder.tokenize(["word " * 90], 3)


def test_checkpoint_holds_no_tower_and_knows_its_tower(detector, folder, tmp_path):
    detector.save_pretrained(tmp_path / "kfd")
    names = set(load_file(tmp_path / "kfd" / "kfd.safetensors"))
    assert not any(name.startswith(("encoder.", "knowledge.")) for name in names)
    assert set(load_file(tmp_path / "kfd" / "knowledge.safetensors")) == {"context"}
    loaded = KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "kfd")
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(detector(images).class_logits, loaded(images).class_logits)

    weights = folder / "open_clip_model.safetensors"
    original = weights.read_bytes()
    try:
        torch.manual_seed(1)
        save_file(open_clip.CLIP(**tiny_towers.OPEN_CLIP).state_dict(), weights)
        with pytest.raises(ValueError, match="trained on other weights"):
            KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "kfd")
    finally:
        weights.write_bytes(original)


def test_folders_of_tower_and_detector_move_together(detector, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "one/clip")
    moved = KnowledgeGuidedForgeryDetector.from_config(_config(tmp_path / "one/clip"))
    moved.save_pretrained(tmp_path / "one/kfd")
    (tmp_path / "one").rename(tmp_path / "two")
    config = json.loads((tmp_path / "two/kfd/kfd_config.json").read_text())["config"]
    assert config["encoder"]["name"] == "local-dir:../clip"
    again = KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "two/kfd")
    assert torch.equal(again.text_features, moved.text_features)


def test_built_in_a_smaller_precision(detector, folder, tmp_path):
    """Tower and heads; what it says is near, and the default is as it was."""
    detector.save_pretrained(tmp_path / "kfd")
    small = KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "kfd", dtype=torch.bfloat16)
    floating = [t for t in small.state_dict().values() if t.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(small(images).score, detector(images).score, atol=0.05, rtol=0)
    with pytest.raises(RuntimeError, match="stop"), default_dtype(torch.float16):
        raise RuntimeError("stop")
    assert torch.get_default_dtype() == torch.float32


def test_unknown_model_is_named():
    with pytest.raises(ValueError, match="no model 'ViT-Z'"):
        load_open_clip(EncoderConfig(name="ViT-Z"))
