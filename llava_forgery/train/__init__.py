"""Training of the detector, of adapters and of pseudo-words."""

from llava_forgery.noise import quiet

with quiet():
    # peft imports bitsandbytes, which prints a notice.
    import peft  # noqa: F401
