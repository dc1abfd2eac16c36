"""Forgery Prompt Learner: the detector's output as embeddings of the host's width."""
