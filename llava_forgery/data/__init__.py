"""Samples for training and evaluation, made from faces."""
