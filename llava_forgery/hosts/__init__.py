"""Vision-language models with the skill: what a host is, and one folder for each backend."""

from llava_forgery.noise import quiet

with quiet():
    # The first to import bitsandbytes, which has something to say.
    import peft  # noqa: F401
