"""How simulated forgeries are drawn."""

from dataclasses import dataclass, fields

from llava_forgery.constants import REGION_NAMES, WHOLE_FACE

PARTS = tuple(name for name in REGION_NAMES if name != WHOLE_FACE)


@dataclass(frozen=True)
class SimulatorConfig:
    """Ranges are (low, high), drawn uniformly unless said otherwise."""

    max_regions: int = 3
    """At most this many regions beside each other (the paper: 1 to 3)."""
    whole_face: float = 0.25
    """Probability that the whole inner face is forged instead of single regions."""
    poisson: float = 0.3
    """Probability of Poisson blending; otherwise alpha blending."""
    growth: tuple[float, float] = (0.95, 1.2)
    """Scale of each hull about its centre."""
    deformation: tuple[float, float] = (0.0, 0.015)
    """Standard deviation of the hulls' elastic displacement, as a share of the image's side."""
    cells: tuple[int, int] = (4, 10)
    """Nodes a side of the displacement's grid: few bend a hull as a whole, many ripple its edge."""
    softness: tuple[float, float] = (0.004, 0.03)
    """Standard deviation of the mask's blur, as a share of the image's side."""
    opacity: tuple[float, ...] = (0.5, 0.75, 1.0, 1.0, 1.0)
    """Factors of the mask, one drawn; self-blended images use such a list as well."""
    angle: float = 0.05
    """Largest turn of the foreground in radians, either way."""
    scale: tuple[float, float] = (0.95, 1.05)
    """Scale of the foreground."""
    shift: float = 0.025
    """Largest move of the foreground in x and in y, as a share of the image's side."""
    rgb: float = 0.08
    """Largest shift of a colour channel, in units of the full range."""
    hue: float = 0.12
    """Largest turn of the hue in radians."""
    saturation: tuple[float, float] = (0.7, 1.3)
    """Factor of the saturation."""
    brightness: float = 0.08
    """Largest change of the brightness, in units of the full range."""
    contrast: tuple[float, float] = (0.85, 1.2)
    """Factor of the contrast."""
    sharpness: tuple[float, float] = (-1.0, 1.5)
    """Unsharp mask's amount; where it is negative, the picture is reduced instead."""
    downscale: tuple[float, float] = (1.0, 2.5)
    """Reduction of one side and back to its size."""
    jpeg: float = 0.2
    """Probability that the recoloured side is compressed before the blending."""
    jpeg_quality: tuple[int, int] = (50, 95)
    """Quality of that compression."""
    on_foreground: float = 0.7
    """Probability that the foreground is recoloured; otherwise the background is."""
    swap: float = 0.0
    """Share of forgeries that bring in another person's face, warped onto the landmarks and matched
    in colour, as Deepfakes and FaceSwap do."""
    reenactment: float = 0.0
    """Share of forgeries that move mouth, jaw and brows of the face itself and blend them in, as
    Face2Face and NeuralTextures do."""
    texture: float = 0.0
    """Probability that the foreground does not look as the camera gave it: drawn at a lower
    resolution and sharpened, smoothed, or with a grain of its own."""
    min_difference: float = 2.0
    """Least mean change inside the mask, in grey levels of 255; a fainter one is drawn anew."""
    max_draws: int = 8
    """Draws after which the strongest one is kept."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_regions <= len(PARTS):
            raise ValueError(f"max_regions must be 1 to {len(PARTS)}, got {self.max_regions}")
        for name in ("whole_face", "poisson", "on_foreground", "jpeg", "swap", "reenactment",
                     "texture"):  # fmt: skip
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability in [0, 1], got {value}")
        if self.swap + self.reenactment > 1:
            raise ValueError(
                f"swap and reenactment are shares of all forgeries, got {self.swap} and "
                f"{self.reenactment}: together over 1"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and field.name != "opacity" and value[0] > value[1]:
                raise ValueError(f"{field.name} must be (low, high), got {value}")
        if not self.opacity or not all(0 < value <= 1 for value in self.opacity):
            raise ValueError(f"opacity holds factors in (0, 1], got {self.opacity}")
        if self.cells[0] < 2:
            raise ValueError(f"cells must be 2 or more, got {self.cells}")
        if self.downscale[0] < 1:
            raise ValueError(f"downscale is a reduction, 1 or more, got {self.downscale}")
        if not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise ValueError(f"jpeg_quality must be within 1 to 100, got {self.jpeg_quality}")
        if self.softness[0] <= 0 or self.max_draws < 1:
            raise ValueError("softness must be over 0 and max_draws at least 1")

    @property
    def draws_kinds(self) -> bool:
        """Whether a forgery may be more than a self-blend."""
        return bool(self.swap or self.reenactment or self.texture)
