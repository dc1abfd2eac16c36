"""Forgery Prompt Learner: turns the detector's output into embeddings of the host's width."""
