"""Vision-language models with the skill: the protocols of a host, and a folder for each backend."""
