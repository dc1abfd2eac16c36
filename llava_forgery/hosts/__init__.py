"""Vision-language models with the skill: what a host is, and one folder for each backend."""
