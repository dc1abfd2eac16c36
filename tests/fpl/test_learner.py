import json

import pytest
import torch
import torch.nn.functional as F

from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import LITE_SIZE, ForgeryPromptLearner, PoolTo
from llava_forgery.kfd.detector import KFDOutput


def _detection(batch=2, layers=3, grid=16, size=64):
    generator = torch.Generator().manual_seed(0)
    return KFDOutput(
        torch.randn(batch, layers, 2, grid, grid, generator=generator, requires_grad=True),
        torch.randn(batch, 2, size, size, generator=generator, requires_grad=True),
        torch.randn(batch, 2, generator=generator, requires_grad=True),
    )


@pytest.mark.parametrize("kind", ["lite", "paper"])
def test_shape_and_gradients(kind):
    learner = ForgeryPromptLearner.from_config(FPLConfig(40, 3, kind, n_base=5, n_forgery=7))
    detection = _detection()
    vectors = learner(detection)
    assert vectors.shape == (2, 7, 40)
    vectors.sum().backward()
    assert all(p.grad is not None for p in learner.parameters())
    # The detector is frozen in stage 2: nothing flows back.
    assert detection.consistency_maps.grad is None
    assert detection.mask_logits.grad is None
    assert detection.class_logits.grad is None


def test_paper_sizes_have_the_official_number_of_parameters():
    """108 M at 4096 (measured on the official code), 9 + 9 + 9 + 1 vectors into 9."""
    with torch.device("meta"):
        learner = ForgeryPromptLearner(FPLConfig(4096, 3, "paper"))
    count = sum(p.numel() for p in learner.parameters())
    assert 107e6 < count < 110e6
    assert learner.fuse.weight.shape == (9, 28, 3)
    assert sum(p.numel() for p in ForgeryPromptLearner(FPLConfig(4096, 3)).parameters()) < 5e6


def test_lite_reads_a_fraction_of_a_detection():
    learner = ForgeryPromptLearner.from_config(FPLConfig(24, 3)).eval()
    detection = _detection(grid=56, size=224)
    read = learner.read(detection)
    assert read.mask.shape == (2, 1, LITE_SIZE, LITE_SIZE)
    assert read.maps.shape == (2, 6, LITE_SIZE, LITE_SIZE)
    assert not any(part.requires_grad for part in read)
    torch.testing.assert_close(read.probabilities, detection.class_logits.detach().softmax(dim=1))
    assert read.mask.mean() == pytest.approx(detection.mask.mean().item(), abs=0.01)


def test_paper_reads_a_detection_whole():
    read = ForgeryPromptLearner.from_config(FPLConfig(24, 3, "paper")).read(_detection())
    assert read.mask.shape == (2, 1, 64, 64)
    assert read.maps.shape == (2, 6, 16, 16)


@pytest.mark.parametrize("side", [3, 6, 12, 14])
def test_pooling_is_torchs(side):
    maps = torch.randn(2, 4, side, side)
    torch.testing.assert_close(PoolTo(6)(maps), F.adaptive_avg_pool2d(maps, 6))


@pytest.mark.parametrize("part", ["consistency_maps", "mask_logits", "class_logits"])
def test_each_input_changes_the_embeddings(part):
    learner = ForgeryPromptLearner.from_config(FPLConfig(24, 3)).eval()
    detection = _detection()
    values = vars(detection) | {
        part: getattr(detection, part) + torch.tensor([0.0, 1.0])
        if part == "class_logits"
        else getattr(detection, part).flip(-1)
    }
    assert not torch.allclose(learner(detection), learner(KFDOutput(**values)))


def test_one_sample_does_not_depend_on_the_others():
    learner = ForgeryPromptLearner.from_config(FPLConfig(24, 3)).train()
    both = _detection(2)
    first = KFDOutput(*(value[:1] for value in vars(both).values()))
    torch.testing.assert_close(learner(both)[:1], learner(first))


def test_start_has_the_size_of_the_hosts_words():
    learner = ForgeryPromptLearner.from_config(FPLConfig(48, 3))
    words = torch.randn(100, 48) * 0.13
    learner.match_scale(words)
    vectors = learner(_detection())
    size = float(vectors.detach().pow(2).mean().sqrt())
    assert 0.13 / 3 < size < 0.13 * 3
    assert learner.training


@pytest.mark.parametrize("kind", ["lite", "paper"])
def test_an_idle_learner_gives_nothing_and_remembers_nothing(kind):
    learner = ForgeryPromptLearner.from_config(FPLConfig(24, 3, kind)).train()
    before = {name: buffer.clone() for name, buffer in learner.named_buffers()}
    with torch.no_grad():
        learner.fuse.bias.fill_(torch.inf)
    zero = learner.idle(torch.device("cpu"))
    assert zero.item() == 0
    zero.backward()
    assert all(not parameter.grad.any() for parameter in learner.parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in learner.named_buffers())
    assert all(module.training for module in learner.modules())


def test_another_detector_is_refused():
    learner = ForgeryPromptLearner(FPLConfig(24, 3))
    with pytest.raises(ValueError, match="reads 3 consistency maps, the detector gave 2"):
        learner(_detection(layers=2))


def test_configuration():
    config = FPLConfig(24, 3, "paper")
    assert FPLConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="n_forgery"):
        FPLConfig(24, 3, n_forgery=0)
    with pytest.raises(ValueError, match="kind"):
        FPLConfig(24, 3, "large")
    with pytest.raises(ValueError, match="colour"):
        FPLConfig.from_dict({"hidden_size": 3, "num_layers": 1, "colour": 2})
