"""Which host an adapter was trained for, and whether another one is the same.

Sizes alone would let an adapter of one checkpoint run on another of the same architecture and give
confident nonsense. A few values of the input embedding tell them apart, and survive changes of
dtype and quantised linear layers.
"""

from typing import Any

import torch
from torch import nn

PROBES = 32
# bfloat16 keeps about three digits.
TOLERANCE = 1e-2


@torch.no_grad()
def embedding_probe(weight: torch.Tensor) -> list[float]:
    """A few values of an embedding (V, C), spread over the vocabulary."""
    # Padding rows at the end may be zero in any checkpoint.
    rows = torch.linspace(0, 0.9 * (len(weight) - 1), PROBES).long()
    columns = torch.arange(PROBES) % weight.shape[1]
    values = weight[rows.to(weight.device), columns.to(weight.device)].float().cpu()
    return [round(value, 8) for value in values.tolist()]


def probe_difference(want: list[float], have: list[float]) -> float:
    """Largest difference of two probes, as a share of their size."""
    want, have = torch.tensor(want), torch.tensor(have)
    return float((want - have).abs().max() / want.abs().mean().clamp(min=1e-12))


def host_fingerprint(host: nn.Module) -> dict[str, Any]:
    """Class, sizes and some embedding values of a transformers host.

    Args:
        host: The bare host, before any adapter is attached.
    """
    weight = host.get_input_embeddings().weight
    text = host.config.get_text_config()
    return {
        "class": type(host).__name__,
        "model_type": host.config.model_type,
        "hidden_size": weight.shape[1],
        "vocab_size": weight.shape[0],
        "num_hidden_layers": text.num_hidden_layers,
        "embedding_probe": embedding_probe(weight),
    }


def check_fingerprint(host: nn.Module, expected: dict[str, Any], adapter: str) -> None:
    """Compare a host with the one that an adapter was trained for.

    Raises:
        ValueError: They differ; the message says in what and what to do.
    """
    found = host_fingerprint(host)
    remedy = "give the host that the adapter was trained with (host=..., or --host)"
    for key, want in expected.items():
        if key != "embedding_probe" and found.get(key) != want:
            raise ValueError(
                f"{adapter} was trained for a host with {key} {want}, this one has "
                f"{found.get(key)}; {remedy}"
            )
    difference = probe_difference(expected["embedding_probe"], found["embedding_probe"])
    if difference > TOLERANCE:
        raise ValueError(
            f"{adapter} was trained for a host of the same sizes but with other weights (input "
            f"embeddings differ by {difference:.2g} of their size); {remedy}"
        )
