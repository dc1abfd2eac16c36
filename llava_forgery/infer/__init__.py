"""Verdicts, dialogues and pictures of them."""
