import pytest
import torch

from llava_forgery.kfd.losses import LossWeights, detector_loss, dice_loss


def _logits(probability):
    """Two-channel logits whose softmax has the given forged channel."""
    p = torch.as_tensor(probability, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    return torch.stack([torch.zeros_like(p), torch.log(p / (1 - p))], dim=1)


def test_known_value():
    # One image of 4 pixels, 2 forged; probability 0.5 everywhere.
    mask = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]], dtype=torch.float64)
    logits = _logits(torch.full((1, 2, 2), 0.5))
    # Each class: 1 - (2 * 1 + 1) / (2 + 2 + 1).
    assert float(dice_loss(logits, mask)) == pytest.approx(1 - 3 / 5)


def test_perfect_masks_cost_nothing():
    for mask in (torch.eye(8)[None, None], torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)):
        assert float(dice_loss(_logits(mask[:, 0]), mask.double())) < 1e-3


def test_empty_mask_gives_a_useful_gradient_and_no_constant():
    empty = torch.zeros(1, 1, 16, 16)
    nearly = _logits(torch.full((1, 16, 16), 0.01)).float().requires_grad_()
    loss = dice_loss(nearly, empty)
    assert float(loss) < 0.02
    loss.backward()
    assert float(nearly.grad[:, 1].sum()) > 0


def test_real_images_do_not_drown_the_forged_one():
    """Three real images that are right leave the loss of the wrong one a quarter of the mean."""
    masks = torch.zeros(4, 1, 8, 8)
    masks[0, :, :4] = 1
    probability = torch.zeros(4, 8, 8)
    wrong = dice_loss(_logits(probability), masks.double())
    probability[0] = masks[0, 0]
    right = dice_loss(_logits(probability), masks.double())
    assert float(right) < 1e-3
    assert float(wrong) > 0.1


def test_gradcheck():
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[[[1.0, 0, 0.3]] * 3], [[[0.0] * 3] * 3]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: dice_loss(x, mask), logits)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\) and \(1, 1, 8, 8\)"):
        dice_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 8, 8))


def test_smoothed_labels_have_their_known_value():
    logits, label = torch.tensor([[0.0, 2.0]]), torch.tensor([1])
    terms = detector_loss(
        torch.zeros(1, 2, 8, 8), logits, torch.ones(1, 1, 8, 8), label,
        LossWeights(label_smoothing=0.1),
    )  # fmt: skip
    log = logits.log_softmax(1)[0]
    assert float(terms["classification"]) == pytest.approx(float(-0.95 * log[1] - 0.05 * log[0]))
    with pytest.raises(ValueError, match="label_smoothing"):
        LossWeights(label_smoothing=1.0)


def test_negative_weight_is_an_error():
    with pytest.raises(ValueError, match="'focal'"):
        LossWeights(focal=-1)


def test_weighted_sum_is_made_of_its_terms():
    torch.manual_seed(0)
    mask_logits, class_logits = torch.randn(4, 2, 8, 8), torch.randn(4, 2)
    mask = torch.zeros(4, 1, 8, 8)
    mask[:2, :, 2:5] = 1
    label = torch.tensor([1, 1, 0, 0])
    weights = LossWeights(reference=0.5, focal=2.0, classification=3.0)
    terms = detector_loss(mask_logits, class_logits, mask, label, weights, mask_logits[:2])
    total = terms["dice"] + 0.5 * terms["reference"] + 2 * terms["focal"]
    torch.testing.assert_close(terms["loss"], total + 3 * terms["classification"])


def test_classification_is_binary_cross_entropy_on_the_score():
    class_logits = torch.randn(6, 2)
    label = torch.tensor([0, 1, 1, 0, 1, 0])
    terms = detector_loss(torch.zeros(6, 2, 4, 4), class_logits, torch.zeros(6, 1, 4, 4), label,
                          LossWeights())  # fmt: skip
    score = class_logits.softmax(dim=1)[:, 1]
    expected = torch.nn.functional.binary_cross_entropy(score, label.float())
    torch.testing.assert_close(terms["classification"], expected)
