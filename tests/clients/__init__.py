"""LLaVA's own tools and lmms-eval with the skill, unmodified, each as a process of its own.

They run on the ``llava`` that Python finds: the package llava-torch, or a checkout of
haotian-liu/LLaVA that stands first on PYTHONPATH.
"""
