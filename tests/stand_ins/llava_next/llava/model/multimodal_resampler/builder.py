"""The Q-Former's imports alone."""

from transformers.modeling_utils import (  # noqa: F401
    apply_chunking_to_forward,
    find_pruneable_heads_and_indices,
    prune_linear_layer,
)
