"""Fingerprint of the host that an adapter was trained for, and comparison with another host.

If only sizes were compared, an adapter of one checkpoint could run on another of the same
architecture and give confident nonsense. A few values of the input embedding, of the vision tower
and of the projector distinguish them, and survive changes of dtype and a quantised language model.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

PROBES = 32
# Number of matrices of each part besides the language model, and of values of each matrix.
MATRICES, VALUES = 8, 8
# bfloat16 keeps about three digits.
TOLERANCE = 1e-2

REMEDY = "give the host that the adapter was trained with (base_model=..., or --base-model)"

# Names of parts in the hosts; others, such as a Q-Former, keep their own names.
_NAMES = {
    **dict.fromkeys(("vision_tower", "vision_model", "visual"), "vision tower"),
    **dict.fromkeys(
        ("multi_modal_projector", "mm_projector", "connector", "language_projection"), "projector"
    ),
}


@torch.no_grad()
def embedding_probe(weight: torch.Tensor) -> list[float]:
    """A few values of an embedding (V, C), spread over the vocabulary."""
    # Padding rows at the end may be zero in any checkpoint.
    rows = torch.linspace(0, 0.9 * (len(weight) - 1), PROBES).long()
    columns = torch.arange(PROBES) % weight.shape[1]
    values = weight[rows.to(weight.device), columns.to(weight.device)].float().cpu()
    return [round(value, 8) for value in values.tolist()]


def probe_difference(want: Sequence[float], have: Sequence[float]) -> float:
    """Norm of the difference of two probes, relative to that of the first."""
    want, have = torch.tensor(want), torch.tensor(have)
    # float16 loses smaller values.
    return float((want - have).norm() / want.norm().clamp(min=1e-4))


@torch.no_grad()
def part_probe(part: nn.Module) -> dict[str, Any]:
    """A few values of some matrices of a module, the same in every dtype.

    Returns:
        ``matrices``, their number, and ``probe``, values of some: the first, the last and some in
        between, by name. The values of a matrix that is quantised or not in memory are None.
    """
    # By name, as the order of modules may differ in another version of transformers.
    matrices = [p for _, p in sorted(part.named_parameters()) if p.dim() > 1]
    chosen = torch.linspace(0, len(matrices) - 1, min(MATRICES, len(matrices))).round().int()
    return {
        "matrices": len(matrices),
        "probe": [_values(matrices[i]) for i in chosen.tolist()],
    }


def _values(matrix: torch.Tensor) -> list[float] | None:
    if not matrix.is_floating_point() or matrix.is_meta:
        return None
    places = ((torch.arange(VALUES) + 0.5) / VALUES * matrix.numel()).long()
    index = torch.unravel_index(places.to(matrix.device), matrix.shape)
    return [float(f"{value:.6g}") for value in matrix[index].float().tolist()]


def host_parts(host: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules besides the language model, by name: vision tower, projector, others.

    Args:
        host: Host of transformers, or of the ``llava`` package.
    """
    inner, decoder = host.base_model, host.get_decoder()
    for name, module in inner.named_children():
        # LLaVA's package keeps them inside the language model.
        beside = name.startswith(("vision_", "mm_")) if decoder is inner else True
        if beside and not any(one is decoder for one in module.modules()):
            yield _NAMES.get(name, name.replace("_", " ")), module


def host_fingerprint(host: nn.Module) -> dict[str, Any]:
    """Class, sizes and some values of a host.

    Args:
        host: Bare host, before any adapter is attached. LLaVA's package may load its vision tower
            later; it is then omitted.

    Raises:
        ValueError: A value is not finite.
    """
    weight = host.get_input_embeddings().weight
    text = host.config.get_text_config()
    found = {
        "class": type(host).__name__,
        "model_type": host.config.model_type,
        "hidden_size": weight.shape[1],
        "vocab_size": weight.shape[0],
        "num_hidden_layers": text.num_hidden_layers,
        "embedding_probe": embedding_probe(weight),
        "parts": _part_probes(host),
    }
    probes = {"input embeddings": found["embedding_probe"]}
    for name, part in found["parts"].items():
        probes[name] = [value for values in part["probe"] for value in values or ()]
    for name, values in probes.items():
        if not torch.tensor(values).isfinite().all():
            raise ValueError(
                f"the host's {name} hold NaN or infinite values: its files are damaged, or its "
                "weights are too large for this dtype; load it in bfloat16 or float32"
            )
    return found


def _part_probes(host: nn.Module) -> dict[str, dict[str, Any]]:
    probes = {name: part_probe(module) for name, module in host_parts(host)}
    return {name: probe for name, probe in probes.items() if probe["matrices"]}


def check_fingerprint(
    host: nn.Module, expected: Mapping[str, Any], adapter: str, skip: Collection[str] = ()
) -> None:
    """Compare a host with the one that an adapter was trained for, in everything recorded.

    Args:
        host: Bare host.
        expected: Recorded fingerprint; those of older adapters have no parts.
        adapter: Name of the adapter for messages.
        skip: Names of parts that are not compared.

    Raises:
        ValueError: The hosts differ; the message says how, with the remedy.
    """
    found = host_fingerprint(host)
    for key, want in expected.items():
        if key not in ("embedding_probe", "parts", "name_or_path") and found.get(key) != want:
            raise ValueError(
                f"{adapter} was trained for a host with {key} {want}, this one has "
                f"{found.get(key)}; {REMEDY}"
            )
    difference = probe_difference(expected["embedding_probe"], found["embedding_probe"])
    if difference > TOLERANCE:
        raise ValueError(_other_weights(adapter, "input embeddings", difference))
    check_parts(host, expected, adapter, skip)


def check_parts(
    host: nn.Module, expected: Mapping[str, Any], adapter: str, skip: Collection[str] = ()
) -> None:
    """Compare only the parts, as in :func:`check_fingerprint`."""
    found = _part_probes(host)
    for name, want in expected.get("parts", {}).items():
        if name in skip:
            continue
        have = found.get(name, {"matrices": 0})
        if have["matrices"] != want["matrices"]:
            raise ValueError(
                f"{adapter} was trained for a host whose {name} has {want['matrices']} matrices of "
                f"weights, this one's has {have['matrices']}; {REMEDY}"
            )
        pairs = [(w, h) for w, h in zip(want["probe"], have["probe"], strict=True) if w and h]
        if not pairs:
            logger.warning(
                "the host's %s could not be compared with that which %s was trained for: it is "
                "quantised, or not in memory",
                name,
                adapter,
            )
        difference = max((probe_difference(w, h) for w, h in pairs), default=0.0)
        if not difference <= TOLERANCE:
            raise ValueError(_other_weights(adapter, name, difference))


def _other_weights(adapter: str, part: str, difference: float) -> str:
    return (
        f"{adapter} was trained for a host of the same sizes but with other weights of its {part} "
        f"(they differ by {difference:.2g} of their size); {REMEDY}"
    )
