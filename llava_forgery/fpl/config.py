"""Configuration of the Forgery Prompt Learner."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class FPLConfig:
    """Everything that determines the learner's tensors.

    The counts follow LVLM-DFD's section 3.2; the official code has 9 of each.
    """

    hidden_size: int
    """C_emb: width of the host's token embeddings."""
    num_layers: int
    """L: number of the detector's consistency maps."""
    kind: Literal["paper", "lite"] = "lite"
    """``paper``: the official sizes, on maps of 224 pixels, 3 x 3 vectors through 5 x 5
    convolutions. ``lite``: small networks on maps of at most 24 pixels, read at 6 x 6 places."""
    n_base: int = 9
    """n_1: number of learned base embeddings."""
    n_forgery: int = 9
    """n_f: number of forgery prompt embeddings that the host receives."""

    def __post_init__(self) -> None:
        if self.kind not in ("paper", "lite"):
            raise ValueError(f"fpl.kind must be 'paper' or 'lite', got {self.kind!r}")
        for name in ("hidden_size", "num_layers", "n_base", "n_forgery"):
            if getattr(self, name) < 1:
                raise ValueError(f"fpl.{name} must be at least 1, got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FPLConfig":
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: Keys are unknown or missing, or values are out of range.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"not a configuration of this version's FPL: {error}") from error
