"""Stage 1's losses (LVLM-DFD, equations 3 and 4)."""

from dataclasses import dataclass

import kornia.losses
import torch
import torch.nn.functional as F

from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector


def dice_loss(logits: torch.Tensor, mask: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    r"""Soft Dice loss of a two-channel mask, the mean over both classes.

    For each sample and class :math:`1 - (2 \sum p g + s) / (\sum p + \sum g + s)`. Where a sample
    has no forged pixel, the forged class has nothing to overlap with, and its Dice would be a
    constant near 1 that dominates the rest: such a sample counts with its background only. The
    same holds for the background of a mask that covers everything.

    Args:
        logits: (B, 2, H, W); channel 1 is forged.
        mask: (B, 1, H, W) or (B, H, W), in [0, 1].
        smooth: s, in pixels.

    Returns:
        Scalar in [0, 1].

    Raises:
        ValueError: The shapes do not match.
    """
    given = tuple(mask.shape)
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if logits.ndim != 4 or logits.shape[1] != 2 or mask.shape != logits[:, 0].shape:
        raise ValueError(
            f"expected logits (B, 2, H, W) and a mask (B, 1, H, W) of the same size, got "
            f"{tuple(logits.shape)} and {given}"
        )
    probability = logits.softmax(dim=1)
    truth = torch.stack([1 - mask, mask], dim=1).to(probability.dtype)
    overlap = (probability * truth).sum(dim=(2, 3))
    total = probability.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    loss = 1 - (2 * overlap + smooth) / (total + smooth)
    present = (truth.sum(dim=(2, 3)) > 0).to(loss.dtype)
    return ((loss * present).sum(dim=1) / present.sum(dim=1)).mean()


@dataclass(frozen=True)
class LossWeights:
    """Weights of stage 1's terms."""

    reference: float = 1.0
    """Lambda of equation 3: weight of the Dice loss of the mask from the reference maps."""
    focal: float = 1.0
    """Focal loss on the mask, which the official code adds; 0 omits it."""
    classification: float = 1.0
    """Binary cross-entropy of the score (equation 4)."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over both classes, in [0, 1); keeps scores away from 0
    and 1."""

    def __post_init__(self) -> None:
        if self.label_smoothing >= 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"the weight {name!r} must not be negative, got {value}")


def detector_loss(
    mask_logits: torch.Tensor,
    class_logits: torch.Tensor,
    mask: torch.Tensor,
    label: torch.Tensor,
    weights: LossWeights,
    reference_logits: torch.Tensor | None = None,
    masked: torch.Tensor | None = None,
    paired: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """All terms of stage 1 and their weighted sum.

    Args:
        mask_logits: (B, 2, H, W) from the consistency maps.
        class_logits: (B, 2), [real, fake].
        mask: (B, 1, H, W) in [0, 1], 0 everywhere for real images.
        label: (B,) long, real 0 and fake 1.
        weights: Weights of the terms.
        reference_logits: (R, 2, H, W) from the reference maps of the first R samples, if any.
        masked: (B,) bool, True where the mask is known, for at least one; by default everywhere.
        paired: (R,) bool, True for those of the first R samples whose reference is their pristine
            image, so that their masks are known; by default for all.

    Returns:
        ``loss`` and the unweighted ``dice``, ``reference``, ``focal``, ``classification``.
    """
    located, truth = mask_logits, mask
    if masked is not None:
        located, truth = mask_logits[masked], mask[masked]
    terms = {"dice": dice_loss(located, truth)}
    if weights.focal:
        target = (truth[:, 0] > 0.5).long()
        terms["focal"] = kornia.losses.focal_loss(
            located, target, alpha=None, gamma=2.0, reduction="mean"
        )
    # Two-class cross-entropy on [real, fake] is binary cross-entropy on the probability of fake.
    terms["classification"] = F.cross_entropy(
        class_logits, label, label_smoothing=weights.label_smoothing
    )
    loss = terms["dice"] + weights.classification * terms["classification"]
    if weights.focal:
        loss = loss + weights.focal * terms["focal"]
    if reference_logits is not None:
        referred = mask[: len(reference_logits)]
        if paired is not None:
            reference_logits, referred = reference_logits[paired], referred[paired]
        # The mean of no values is NaN; their sum, 0, gives gradients of 0.
        some = len(referred) > 0
        terms["reference"] = (
            dice_loss(reference_logits, referred) if some else reference_logits.sum()
        )
        loss = loss + weights.reference * terms["reference"]
    return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}


def training_losses(
    detector: KnowledgeGuidedForgeryDetector,
    forged: torch.Tensor,
    pristine: torch.Tensor,
    mask: torch.Tensor,
    weights: LossWeights,
    masked: torch.Tensor | None = None,
    paired: torch.Tensor | None = None,
) -> tuple[KFDOutput, dict[str, torch.Tensor]]:
    """Stage 1's losses on pairs (equations 3 and 4).

    Args:
        detector: Detector in training mode.
        forged: (B, 3, H, W) in [0, 1].
        pristine: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W) in [0, 1].
        weights: Weights of the terms.
        masked: (B,) bool, True where the mask is known; by default everywhere.
        paired: (B,) bool, True where a forgery was made from its pristine image; by default
            everywhere.

    Returns:
        The output for forged and pristine images, (2B, ...), and the losses.
    """
    output, reference_logits = detector.detect_pairs(forged, pristine, bool(weights.reference))
    label = torch.cat([torch.ones(len(forged)), torch.zeros(len(pristine))])
    losses = detector_loss(
        output.mask_logits,
        output.class_logits,
        torch.cat([mask, torch.zeros_like(mask)]),
        label.long().to(forged.device),
        weights,
        reference_logits,
        None if masked is None else torch.cat([masked, torch.ones_like(masked)]),
        paired,
    )
    return output, losses
