import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_forgery.kfd.config import PRESETS, KFDConfig
from llava_forgery.kfd.consistency import ConsistencyMaps
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.heads import ForgeryClassifier, PaperLocator, frozen_statistics
from llava_forgery.kfd.losses import LossWeights, training_losses
from tests import tiny


def _images(count=2, seed=0):
    return torch.rand(count, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(seed))


def _step(detector, seed=0):
    """One training step on a random pair."""
    detector.train()
    mask = torch.zeros(2, 1, tiny.SIZE, tiny.SIZE)
    mask[..., 20:40, 20:40] = 1
    output, losses = training_losses(
        detector, _images(seed=seed), _images(seed=seed + 1), mask, LossWeights()
    )
    losses["loss"].backward()
    return output, losses


def test_output_shapes_and_ranges():
    output = tiny.kfd()(_images(3))
    assert output.consistency_maps.shape == (3, 3, 2, 16, 16)
    assert output.mask_logits.shape == (3, 2, 64, 64)
    assert output.class_logits.shape == (3, 2)
    assert output.mask.shape == (3, 1, 64, 64)
    assert output.score.shape == (3,)
    assert 0 <= float(output.mask.min()) <= float(output.mask.max()) <= 1


def test_paper_heads_work_on_maps_of_the_images_size():
    detector = tiny.kfd(heads="paper")
    assert isinstance(detector.locator, PaperLocator)
    assert detector(_images()).mask_logits.shape == (2, 2, 64, 64)
    sizes = []
    detector.classifier.register_forward_pre_hook(lambda m, x: sizes.append(x[0].shape[-2:]))
    detector(_images())
    assert sizes == [(64, 64)]


def test_paper_heads_have_the_official_sizes():
    locator, classifier = PaperLocator(3), ForgeryClassifier(3)
    count = sum(p.numel() for p in locator.parameters())
    assert count == 3 * (2 * 128 * 9 + 128 + 2 * 128) + 384 * 2 * 9 + 2
    assert classifier.fc[0].in_features == 768
    assert classifier.fc[0].out_features == 128
    assert 1.2e6 < sum(p.numel() for p in classifier.parameters()) < 1.3e6


def test_maps_are_scaled_cosines_to_real_and_fake():
    maps = ConsistencyMaps([4], 4, temperature=100.0)
    with torch.no_grad():
        maps.linears[0].weight.copy_(torch.eye(4))
        maps.linears[0].bias.zero_()
    feature = torch.zeros(1, 4, 1, 2)
    feature[0, 0, 0, 0] = 3.0
    feature[0, 1, 0, 1] = 0.5
    text = torch.tensor([[2.0, 0, 0, 0], [0, 7.0, 0, 0]])
    result = maps.to_text(maps.project([feature]), text)
    expected = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    torch.testing.assert_close(result[0, 0, :, 0], expected)


def test_reference_maps_are_cosines_and_complements():
    maps = ConsistencyMaps([4], 4, temperature=10.0)
    one, other = maps.project([torch.randn(1, 4, 2, 2)]), maps.project([torch.randn(1, 4, 2, 2)])
    same = maps.to_reference(one, one)
    torch.testing.assert_close(same[:, :, 0], torch.full((1, 1, 2, 2), 10.0))
    torch.testing.assert_close(same[:, :, 1], torch.zeros(1, 1, 2, 2), atol=1e-4, rtol=0)
    cosine = torch.nn.functional.cosine_similarity(one[0], other[0], dim=1)
    torch.testing.assert_close(maps.to_reference(one, other)[:, 0, 0], 10 * cosine)


def test_every_part_that_is_trained_receives_a_gradient():
    detector = tiny.kfd()
    _step(detector)
    without = [n for n, p in detector.named_parameters() if p.grad is None]
    # Stages behind the last tap are not run.
    assert all(name.startswith("encoder.trunk.") for name in without)
    assert float(detector.knowledge.context.grad.abs().sum()) > 0
    assert float(detector.consistency.log_temperature.grad.abs()) > 0


def test_reference_term_reaches_the_encoder_and_can_be_left_out():
    detector = tiny.kfd()
    _, losses = _step(detector)
    assert "reference" in losses
    mask = torch.zeros(2, 1, 64, 64)
    _, losses = training_losses(detector, _images(), _images(), mask, LossWeights(reference=0.0))
    assert "reference" not in losses


def test_locator_does_not_remember_the_reference_maps():
    locator = PaperLocator(1)
    norm = locator.branches[0][2]
    locator(torch.randn(2, 1, 2, 8, 8))
    before = norm.running_mean.clone()
    with frozen_statistics(locator):
        locator(5 + torch.randn(2, 1, 2, 8, 8))
    assert torch.equal(norm.running_mean, before)
    assert int(norm.num_batches_tracked) == 1
    assert norm.momentum == 0.1


def test_text_features_follow_training_and_are_a_buffer_at_inference():
    detector = tiny.kfd()
    before = detector.text_features.clone()
    detector.train()
    with torch.no_grad():
        detector.knowledge.context.normal_()
    detector.eval()
    assert not torch.allclose(before, detector.text_features)
    torch.testing.assert_close(detector.text_features, detector.knowledge().detach())


def test_saved_and_loaded_detector_says_the_same(tmp_path):
    detector = tiny.kfd()
    optimiser = torch.optim.SGD(detector.parameters(), lr=0.1)
    _step(detector)
    optimiser.step()
    detector.eval()
    expected = detector(_images())
    detector.save_pretrained(tmp_path)
    loaded = KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path)
    found = loaded(_images())
    assert torch.equal(expected.class_logits, found.class_logits)
    assert torch.equal(expected.mask_logits, found.mask_logits)
    # The text encoder is not even built.
    assert loaded.knowledge is None
    assert {p.name for p in tmp_path.iterdir()} == {
        "kfd_config.json", "kfd.safetensors", "knowledge.safetensors"
    }  # fmt: skip
    again = KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path, with_knowledge=True)
    assert torch.equal(again.knowledge.context, detector.knowledge.context)


def test_a_wrong_file_is_an_error_that_lists_the_keys(tmp_path):
    tiny.kfd().save_pretrained(tmp_path)
    path = tmp_path / "kfd.safetensors"
    tensors = load_file(path)
    removed = tensors.pop("classifier.fc.0.bias")
    tensors["surprise"] = removed
    tensors["text_features"] = torch.zeros(2, 3)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="fc.0.bias") as error:
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path)
    assert "unknown surprise" in str(error.value)
    assert "(2, 3), expected (2, 16)" in str(error.value)


def test_damaged_and_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="kfd_config.json"):
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path)
    tiny.kfd().save_pretrained(tmp_path)
    (tmp_path / "kfd.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path)
    (tmp_path / "kfd.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"kfd\.safetensors is missing"):
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path)


def test_unknown_configuration_keys_are_an_error(tmp_path):
    tiny.kfd().save_pretrained(tmp_path)
    meta = json.loads((tmp_path / "kfd_config.json").read_text())
    meta["config"]["colour"] = "blue"
    (tmp_path / "kfd_config.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="colour"):
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path)


def test_configuration_survives_json():
    for config in PRESETS.values():
        assert KFDConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"descriptions_fake": "fake"}, "descriptions_fake"),
        ({"heads": "huge"}, "heads"),
        ({"temperature": 0}, "temperature"),
        ({"context_length": -1}, "context_length"),
    ],
)
def test_wrong_configuration_is_an_error(values, message):
    with pytest.raises(ValueError, match=message):
        KFDConfig(**values)


def test_wrong_image_size_and_unknown_preset_are_named():
    with pytest.raises(ValueError, match=r"\(B, 3, 64, 64\)"):
        tiny.kfd()(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="paper, tiny"):
        KnowledgeGuidedForgeryDetector.from_preset("large")


def test_seed_decides_the_weights_and_nothing_else():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, two, other = tiny.kfd(1), tiny.kfd(1), tiny.kfd(2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(one(_images()).class_logits, two(_images()).class_logits)
    assert not torch.equal(one(_images()).class_logits, other(_images()).class_logits)


def test_detached_output_has_no_graph():
    detector = tiny.kfd()
    output = detector(_images())
    assert output.class_logits.requires_grad
    assert isinstance(output.detach(), KFDOutput)
    assert not output.detach().mask.requires_grad
