"""From a detector's logits to probabilities and verdicts, with warnings about unfamiliar pictures.

All numbers are fitted by ``llava-forgery eval calibrate`` on people who were not in training, and
are stored in ``kfd_config.json``.
"""

from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

import cv2
import numpy as np
import torch

BANDS = ("real", "uncertain", "fake")
# Neighbouring grey values that differ by less than this count as flat: codecs smooth them away.
_FLAT = 1.5


@dataclass(frozen=True)
class Thresholds:
    """Scores in [0, 1] at which a verdict changes; without a calibration all are 0.5."""

    fake: float = 0.5
    """Scores from here on are called fake."""
    low: float = 0.5
    """Scores below are real: 5 % of the fakes used for calibration lie there."""
    high: float = 0.5
    """Scores from here on are fake: 5 % of the real faces lie there. Between ``low`` and ``high``
    the verdict is uncertain."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.fake <= self.high <= 1:
            raise ValueError(f"expected 0 <= low <= fake <= high <= 1, got {self}")

    def band(self, score: float) -> str:
        """``real``, ``uncertain`` or ``fake``."""
        if score < self.low:
            return "real"
        return "fake" if score >= self.high else "uncertain"


@dataclass(frozen=True)
class Domain:
    """Range of the pictures used for calibration; see :func:`measure_picture`."""

    sharpness: tuple[float, float]
    """Smallest and largest value."""
    flatness: tuple[float, float]
    """Smallest and largest value."""
    side: float
    """Side of the smallest squares, in pixels of their pictures."""
    mean: tuple[float, ...]
    """(D,), the mean of :func:`map_features`."""
    whitening: tuple[tuple[float, ...], ...]
    """(D, D): scales the centred features to unit variance."""
    distance: float
    """Largest norm of the whitened features."""

    def __post_init__(self) -> None:
        for name in ("sharpness", "flatness"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"domain.{name} must be (low, high), got {(low, high)}")
            object.__setattr__(self, name, (float(low), float(high)))
        size = len(self.mean)
        rows = tuple(tuple(map(float, row)) for row in self.whitening)
        if not size or len(rows) != size or any(len(row) != size for row in rows):
            raise ValueError(f"domain.whitening must be ({size}, {size}), as mean is ({size},)")
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "whitening", rows)

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Norms (N,) of whitened features (N, D)."""
        return np.linalg.norm((features - self.mean) @ np.array(self.whitening), axis=1)

    def warnings(self, image: np.ndarray, side: float, maps: torch.Tensor) -> tuple[str, ...]:
        """How a face differs from what the detector was calibrated on, in whole phrases.

        Args:
            image: (S, S, 3) uint8, the square that the detector sees.
            side: Side of that square, in pixels of its picture.
            maps: Consistency maps (L, 2, h, w) of the square.
        """
        found = []
        if side < self.side:
            found.append(f"the face is small ({side:.0f} pixels, known from {self.side:.0f})")
        for name, value in measure_picture(image).items():
            low, high = getattr(self, name)
            less, more = _WORDS[name]
            if value < low:
                found.append(f"{less} ({name} {value:.2f}, known from {low:.2f})")
            elif value > high:
                found.append(f"{more} ({name} {value:.2f}, known to {high:.2f})")
        distance = float(self.distances(map_features(maps[None]))[0])
        if distance > self.distance:
            found.append(
                f"its features are unlike those of known faces (distance {distance:.1f}, known to "
                f"{self.distance:.1f})"
            )
        return tuple(found)


_WORDS = {
    "sharpness": ("the picture is blurred", "the picture is sharpened or noisy"),
    "flatness": ("the picture is grainy", "the picture is smooth or strongly compressed"),
}


def measure_picture(image: np.ndarray) -> dict[str, float]:
    """Sharpness and flatness of a picture.

    ``sharpness`` is the decimal logarithm of the Laplacian's variance; ``flatness`` the share of
    neighbouring pixels that hardly differ, in [0, 1], which rises with compression.

    Args:
        image: (S, S, 3) uint8 RGB.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    steps = np.abs(np.diff(grey, axis=1))
    return {
        "sharpness": float(np.log10(1 + cv2.Laplacian(grey, cv2.CV_32F).var())),
        "flatness": float((steps < _FLAT).mean()),
    }


def map_features(maps: torch.Tensor) -> np.ndarray:
    """Spatial mean and standard deviation (B, 4 L) float64 of consistency maps (B, L, 2, h, w)."""
    flat = maps.detach().double().cpu().flatten(3)
    return torch.cat([flat.mean(-1), flat.std(-1)], dim=2).flatten(1).numpy()


@dataclass(frozen=True)
class Calibration:
    """Turns a logit into the score ``sigmoid((logit - offset) / temperature)``."""

    temperature: float = 1.0
    offset: float = 0.0
    thresholds: Thresholds = field(default_factory=Thresholds)
    domain: Domain | None = None
    """None: no picture causes a warning."""

    def __post_init__(self) -> None:
        if not (isfinite(self.temperature) and self.temperature > 0 and isfinite(self.offset)):
            raise ValueError(
                f"temperature must be over 0 and offset finite, got {self.temperature} and "
                f"{self.offset}"
            )

    def apply(self, class_logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, 2) of [real, fake], calibrated."""
        shift = class_logits.new_tensor([0.0, self.offset])
        return (class_logits - shift) / self.temperature

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Calibration":
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: Keys are unknown or missing, or values are out of range.
        """
        try:
            values = dict(values)
            thresholds = Thresholds(**values.pop("thresholds"))
            domain = values.pop("domain")
            built = cls(
                **values,
                thresholds=thresholds,
                domain=None if domain is None else Domain(**domain),
            )
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"not a calibration of this version ({error}); repeat `llava-forgery eval "
                "calibrate`"
            ) from error
        return built
