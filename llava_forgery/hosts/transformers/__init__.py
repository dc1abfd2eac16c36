"""The backend for transformers' image-text-to-text models."""
