"""llava-forgery: forgery skills for LLaVA-style vision-language models.

The public names below are imported when they are first used: ``import llava_forgery`` alone loads
neither torch nor transformers and registers nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from llava_forgery.noise import quiet

__version__ = "0.1.0"

_PUBLIC = {
    "KFDConfig": "llava_forgery.kfd.config",
    "KnowledgeGuidedForgeryDetector": "llava_forgery.kfd.detector",
    "KFDOutput": "llava_forgery.kfd.detector",
    "FPLConfig": "llava_forgery.fpl.config",
    "ForgeryPromptLearner": "llava_forgery.fpl.learner",
    "ForgerySimulator": "llava_forgery.simulate.simulator",
    "attach_forgery": "llava_forgery.hosts.transformers.model",
    "ForgeryPredictor": "llava_forgery.infer.predictor",
    "Verdict": "llava_forgery.infer.verdict",
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from llava_forgery.fpl.config import FPLConfig as FPLConfig
    from llava_forgery.fpl.learner import ForgeryPromptLearner as ForgeryPromptLearner
    from llava_forgery.hosts.transformers.model import attach_forgery as attach_forgery
    from llava_forgery.infer.predictor import ForgeryPredictor as ForgeryPredictor
    from llava_forgery.infer.verdict import Verdict as Verdict
    from llava_forgery.kfd.config import KFDConfig as KFDConfig
    from llava_forgery.kfd.detector import KFDOutput as KFDOutput
    from llava_forgery.kfd.detector import (
        KnowledgeGuidedForgeryDetector as KnowledgeGuidedForgeryDetector,
    )
    from llava_forgery.simulate.simulator import ForgerySimulator as ForgerySimulator


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        with quiet():
            return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'llava_forgery' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
