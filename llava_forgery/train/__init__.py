"""Training of the detector, of adapters and of pseudo-words."""

from llava_forgery.noise import quiet

with quiet():
    # The first to import bitsandbytes, which has something to say.
    import peft  # noqa: F401
