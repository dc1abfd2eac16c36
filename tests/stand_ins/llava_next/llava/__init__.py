"""A stand-in for LLaVA-NeXT's package: its names, signatures and habits, nothing of its code.

It imports what transformers 5 has moved, sets ``rope_scaling`` to None behind the first
initialisation, reads its tower while it is built, and wants ``modalities``.
"""

from .model import LlavaQwenForCausalLM  # noqa: F401
