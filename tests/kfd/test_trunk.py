"""The trunk is timm's."""

import pytest
import timm
import torch
from torch import nn

from llava_forgery.kfd.trunk import MEAN, NAME, STD, EfficientNetLite0


@pytest.mark.parametrize("taps", [(1, 2, 3), (0, 4)])
def test_it_gives_what_timm_gives(taps):
    torch.manual_seed(0)
    theirs = timm.create_model(NAME, features_only=True, out_indices=taps)
    ours = EfficientNetLite0(taps)
    assert tuple(theirs.feature_info.channels()) == ours.widths
    assert (theirs.default_cfg["mean"], theirs.default_cfg["std"]) == (MEAN, STD)
    one, two = theirs.state_dict(), ours.state_dict()
    assert list(one) == list(two)
    # New weights are drawn alike.
    large = [name for name in one if one[name].numel() > 10_000]
    for name in large:
        assert float(two[name].std() / one[name].std()) == pytest.approx(1, abs=0.05)
    ours.load_state_dict(one)
    # A side that no stride divides is padded as TensorFlow does.
    for side in (64, 75):
        pixels = torch.rand(2, 3, side, side)
        for training in (True, False):
            theirs.train(training), ours.train(training)
            for found, expected in zip(ours(pixels), theirs(pixels), strict=True):
                torch.testing.assert_close(found, expected)


def test_unknown_taps():
    with pytest.raises(ValueError, match="0 to 4"):
        EfficientNetLite0((1, 5))


def test_scaled_weights_give_the_same_features():
    torch.manual_seed(0)
    model = EfficientNetLite0((2, 4)).double()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    images = torch.rand(2, 3, 50, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model.eval()(images)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.scale_weights()
        calls = []
        model.bn1.register_forward_hook(lambda *_: calls.append("bn1"))
        torch.testing.assert_close(model(images), expected)
    assert not calls
    # Training computes and trains as ever.
    assert all(feature.requires_grad for feature in model(images))
    model.train()(images)
    assert calls == ["bn1"] * 2
    assert before.keys() == model.state_dict().keys()
