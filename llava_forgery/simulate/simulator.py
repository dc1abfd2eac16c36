"""From a photograph and its landmarks to a simulated forgery (LVLM-DFD, section 3.3).

One to three regions are chosen; a slightly moved and recoloured copy of the photograph is blended
into the photograph under the softened hull of these regions (equation 6). Everything about the
forgery is then known: the pristine image, the mask and the regions' names.
"""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
import torch

from llava_forgery.simulate.config import SimulatorConfig as SimulatorConfig
from llava_forgery.simulate.drawing import FaceDrawer
from llava_forgery.simulate.foreground import Donor
from llava_forgery.simulate.plan import ForgeryPlan, draw_plans
from llava_forgery.simulate.render import Rendering, render_forgery
from llava_forgery.simulate.render_torch import render_batch

RENDERERS = ("auto", "opencv", "torch")
_OUTSIDE = "no region of the face lies inside the image: check the landmarks"


class ForgedFace(NamedTuple):
    """One simulated forgery in bytes."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB, the forged face."""
    pristine: np.ndarray
    """(H, W, 3) uint8 RGB, equal to ``image`` wherever the mask is 0; the given image itself
    (not a copy) where the foreground was recoloured."""
    mask: np.ndarray
    """(H, W) uint8, over 127 inside the forged area."""
    plan: ForgeryPlan
    """All that was drawn; ``plan.regions`` names the forged regions."""


class ForgedFaces(NamedTuple):
    """A batch of simulated forgeries."""

    image: torch.Tensor
    """(B, 3, H, W) in [0, 1], the forged faces."""
    pristine: torch.Tensor
    """(B, 3, H, W) in [0, 1], equal to ``image`` wherever the mask is 0."""
    mask: torch.Tensor
    """(B, 1, H, W) in [0, 1], over 0.5 inside the forged area."""
    regions: tuple[tuple[str, ...], ...]
    """Per sample the names of the forged regions, in the order of ``REGION_NAMES``."""


class ForgerySimulator:
    """Makes simulated forgeries out of real faces.

    All random choices are drawn first, from a seed for each face (:mod:`plan`); what is drawn from
    them depends on nothing else. The same seed gives the same forgery bit for bit, alone or in a
    batch, in any worker process. Tensors on a GPU are forged there in one batch by the same plans
    (:mod:`render_torch`), equal to the bytes of the CPU up to a few grey levels.

    Args:
        config: How they are drawn; the defaults if None.
        renderer: What forges tensors: "opencv" on the CPU, one face after another; "torch" on the
            tensors' device; "auto" takes torch where they lie on a GPU, otherwise OpenCV. Arrays
            of bytes are always forged with OpenCV.
        workers: Processes that draw plans and masks for the torch renderer; 0 draws them in the
            calling process, which a fast GPU waits for. They are started with the first batch, as
            by a ``DataLoader`` that spawns: the script's main part belongs under
            ``if __name__ == "__main__"``.

    Raises:
        ValueError: An unknown renderer, or a negative number of workers.

    Example:
        >>> simulator = ForgerySimulator()
        >>> faces = simulator(images, landmarks, torch.Generator().manual_seed(0))
        >>> faces.image.shape == images.shape
        True
    """

    def __init__(
        self, config: SimulatorConfig | None = None, renderer: str = "auto", workers: int = 0
    ) -> None:
        if renderer not in RENDERERS:
            raise ValueError(f"renderer must be one of {', '.join(RENDERERS)}, got {renderer!r}")
        self.config = config or SimulatorConfig()
        self.renderer = renderer
        self.drawer = FaceDrawer(self.config, workers)

    def forge(
        self, image: np.ndarray, landmarks: np.ndarray, seed: int, donor: Donor | None = None
    ) -> ForgedFace:
        """Forge one face; a forgery that is too faint is drawn anew, at most ``max_draws`` times.

        Args:
            image: (H, W, 3) uint8 RGB, a real face.
            landmarks: (68, 2) in its pixels.
            seed: 0 or more.
            donor: Another person's face, which a configuration with swaps needs.

        Returns:
            The first forgery that changes enough to be seen, or the strongest one.

        Raises:
            ValueError: Shape or dtype are not as above, the face lies outside its image, or a
                donor is missing.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"expected an image (H, W, 3) uint8, got {image.shape} {image.dtype}; pictures "
                "in [0, 1] go in as tensors (B, 3, H, W)"
            )
        image = np.ascontiguousarray(image)
        landmarks = np.asarray(landmarks, dtype=np.float32)
        best, chosen = Rendering(image, image, image[..., 0], -1.0), None
        for plan in islice(draw_plans(self.config, seed), self.config.max_draws):
            rendering = render_forgery(image, landmarks, plan, donor)
            if rendering.difference > best.difference:
                best, chosen = rendering, plan
            if best.difference >= self.config.min_difference:
                break
        if chosen is None:
            raise ValueError(_OUTSIDE)
        return ForgedFace(best.image, best.pristine, best.mask, chosen)

    def forge_batch(
        self, images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray], seeds: Sequence[int]
    ) -> list[ForgedFace]:
        """Forge faces one after another; each result is what :meth:`forge` gives for its seed.

        Args:
            images: (H, W, 3) uint8 RGB each; sizes may differ.
            landmarks: (68, 2) each.
            seeds: One for each face.

        Raises:
            ValueError: The counts differ, or as :meth:`forge`.
        """
        if not len(images) == len(landmarks) == len(seeds):
            raise ValueError(
                f"expected landmarks and a seed for each of {len(images)} images, got "
                f"{len(landmarks)} and {len(seeds)}"
            )
        return [self.forge(*item) for item in zip(images, landmarks, seeds, strict=True)]

    @torch.no_grad()
    def __call__(
        self,
        images: torch.Tensor,
        landmarks: torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | Sequence[int],
    ) -> ForgedFaces:
        """Forge a batch of tensors; it has no donors, so that the configuration has no swaps.

        Args:
            images: (B, 3, H, W) float in [0, 1], real faces; they are read with 8 bits.
            landmarks: (B, 68, 2) float pixels of these images.
            generator: CPU generator for the batch, or a generator or a seed for each sample: then
                a sample's forgery depends on its own alone, whatever stands beside it.

        Returns:
            The forged faces, on the images' device.

        Raises:
            ValueError: Shapes, dtype or range are not as above; a face lies outside its image; the
                configuration has swaps.
        """
        _check(images, landmarks)
        seeds = _seeds(generator, len(images))
        points = landmarks.detach().cpu().numpy().astype(np.float32)
        wanted = images.is_cuda if self.renderer == "auto" else self.renderer == "torch"
        if wanted and len(images):
            source = (images * 255).round().byte()
            made = self.forge_on_device(source, points, seeds)
            return ForgedFaces(
                (made.image.float() / 255).to(images),
                (made.pristine.float() / 255).to(images),
                (made.mask.float() / 255).to(images),
                made.regions,
            )
        pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        forged = self.forge_batch(list(pixels), list(points), seeds)
        return ForgedFaces(
            torch.stack([to_tensor(face.image) for face in forged]).to(images),
            torch.stack([to_tensor(face.pristine) for face in forged]).to(images),
            torch.stack([to_tensor(face.mask) for face in forged]).to(images),
            tuple(face.plan.regions for face in forged),
        )

    @torch.no_grad()
    def forge_on_device(
        self,
        images: torch.Tensor,
        landmarks: np.ndarray,
        seeds: Sequence[int],
        donors: Sequence[Donor | None] | None = None,
    ) -> ForgedFaces:
        """What :meth:`forge` does to one face, for a batch: only those too faint go round again.

        Args:
            images: (B, 3, H, W) uint8, real faces, on any device, which forges them.
            landmarks: (B, 68, 2) float32 in pixels of these images.
            seeds: One for each face.
            donors: One for each face, of a configuration with swaps.

        Returns:
            The forged faces in bytes, on the images' device: uint8 in place of floats.

        Raises:
            ValueError: A face lies outside its image, or a donor is missing.
        """
        donors = [None] * len(images) if donors is None else donors
        height, width = images.shape[2:]
        chosen, masks = self.drawer(seeds, landmarks, (height, width))
        drawn = render_batch(images, list(landmarks), chosen, masks, donors)
        image, pristine, mask = drawn[:3]
        best = drawn.difference.cpu().numpy()
        for turn in range(1, self.config.max_draws):
            (left,) = np.nonzero(best < self.config.min_difference)
            if not len(left):
                break
            # Few faces get here.
            rows = left.tolist()
            plans = [next(islice(draw_plans(self.config, seeds[i]), turn, None)) for i in rows]
            given = [donors[i] for i in rows]
            drawn = render_batch(images[left], list(landmarks[left]), plans, donors=given)
            differences = drawn.difference.cpu().numpy()
            (stronger,) = np.nonzero(differences > best[left])
            to = left[stronger]
            image[to], pristine[to] = drawn.image[stronger], drawn.pristine[stronger]
            mask[to], best[to] = drawn.mask[stronger], differences[stronger]
            for place in stronger.tolist():
                chosen[rows[place]] = plans[place]
        if (best < 0).any():
            raise ValueError(_OUTSIDE)
        return ForgedFaces(image, pristine, mask, tuple(plan.regions for plan in chosen))


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) or (H, W) uint8 -> (3, H, W) or (1, H, W) float32 in [0, 1]."""
    # Splitting in OpenCV and dividing in NumPy take a fifth of what torch takes for it.
    planes = np.stack(cv2.split(image))
    return torch.from_numpy(planes / np.float32(255))


def _seeds(
    generator: torch.Generator | Sequence[torch.Generator] | Sequence[int], count: int
) -> list[int]:
    if isinstance(generator, torch.Generator):
        return torch.randint(2**62, (count,), generator=generator).tolist()
    seeds = [
        int(torch.randint(2**62, (), generator=item)) if isinstance(item, torch.Generator) else item
        for item in generator
    ]
    if len(seeds) != count:
        raise ValueError(
            f"expected one generator, or a generator or seed for each of the {count} images, "
            f"got {len(seeds)}"
        )
    return seeds


def _check(images: torch.Tensor, landmarks: torch.Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"expected float images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if landmarks.shape != (len(images), 68, 2):
        raise ValueError(
            f"expected landmarks ({len(images)}, 68, 2) in pixels, got {tuple(landmarks.shape)}"
        )
    # Both in one go: a GPU is waited for only once.
    low, high = torch.stack(images.aminmax()).tolist() if images.numel() else (0, 0)
    if low < 0 or high > 1:
        raise ValueError(
            f"expected images in [0, 1], got [{low:.3g}, {high:.3g}]; divide bytes by 255"
        )
