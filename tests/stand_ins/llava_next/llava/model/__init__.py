from .language_model.llava_qwen import LlavaQwenConfig, LlavaQwenForCausalLM  # noqa: F401
