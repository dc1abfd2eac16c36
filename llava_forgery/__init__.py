"""llava-forgery: forgery skills for LLaVA-style vision-language models.

The public names below are imported on first use: ``import llava_forgery`` by itself loads neither
torch nor transformers and registers nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from llava_forgery.noise import quiet

__version__ = "0.1.0"

_PUBLIC = {
    "KFDConfig": "llava_forgery.kfd.config",
    "EncoderConfig": "llava_forgery.kfd.config",
    "KnowledgeGuidedForgeryDetector": "llava_forgery.kfd.detector",
    "KFDOutput": "llava_forgery.kfd.detector",
    "FPLConfig": "llava_forgery.fpl.config",
    "ForgeryPromptLearner": "llava_forgery.fpl.learner",
    "ForgerySimulator": "llava_forgery.simulate.simulator",
    "DegradeConfig": "llava_forgery.simulate.degrade",
    "MediaSource": "llava_forgery.faces.sources",
    "prepare_sources": "llava_forgery.faces.prepare",
    "LoraSettings": "llava_forgery.hosts.lora",
    "attach_forgery": "llava_forgery.hosts.transformers.model",
    "AutoForgeryModel": "llava_forgery.hosts.auto",
    "ForgeryProcessor": "llava_forgery.hosts.auto",
    "HostFamily": "llava_forgery.hosts.families",
    "register_family": "llava_forgery.hosts.families",
    "add_figures": "llava_forgery.hosts.adapter",
    "attach_to_llava": "llava_forgery.hosts.llava.model",
    "forgery_prefix": "llava_forgery.hosts.llava.prompts",
    "tokenizer_forgery_token": "llava_forgery.hosts.llava.prompts",
    "register": "llava_forgery.hosts.llava.register",
    "unregister": "llava_forgery.hosts.llava.register",
    "patch_llava_next": "llava_forgery.hosts.llava.compat",
    "export_transformers": "llava_forgery.hosts.transformers.export",
    "register_auto_classes": "llava_forgery.hosts.transformers.exported_processor",
    "attach_pseudo_word": "llava_forgery.hosts.pseudo_word",
    "load_pseudo_word": "llava_forgery.hosts.pseudo_word",
    "attach_lvlm_dfd": "llava_forgery.convert.lvlm_dfd",
    "ForgeryPredictor": "llava_forgery.infer.predictor",
    "Verdict": "llava_forgery.infer.verdict",
    "judge_video": "llava_forgery.infer.video",
    "photograph_overlay": "llava_forgery.infer.overlay",
    "detection_report": "llava_forgery.evaluation.report",
    "group_table": "llava_forgery.evaluation.groups",
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from llava_forgery.convert.lvlm_dfd import attach_lvlm_dfd as attach_lvlm_dfd
    from llava_forgery.evaluation.groups import group_table as group_table
    from llava_forgery.evaluation.report import detection_report as detection_report
    from llava_forgery.faces.prepare import prepare_sources as prepare_sources
    from llava_forgery.faces.sources import MediaSource as MediaSource
    from llava_forgery.fpl.config import FPLConfig as FPLConfig
    from llava_forgery.fpl.learner import ForgeryPromptLearner as ForgeryPromptLearner
    from llava_forgery.hosts.adapter import add_figures as add_figures
    from llava_forgery.hosts.auto import AutoForgeryModel as AutoForgeryModel
    from llava_forgery.hosts.auto import ForgeryProcessor as ForgeryProcessor
    from llava_forgery.hosts.families import HostFamily as HostFamily
    from llava_forgery.hosts.families import register_family as register_family
    from llava_forgery.hosts.llava.compat import patch_llava_next as patch_llava_next
    from llava_forgery.hosts.llava.model import attach_to_llava as attach_to_llava
    from llava_forgery.hosts.llava.prompts import forgery_prefix as forgery_prefix
    from llava_forgery.hosts.llava.prompts import tokenizer_forgery_token as tokenizer_forgery_token
    from llava_forgery.hosts.llava.register import register as register
    from llava_forgery.hosts.llava.register import unregister as unregister
    from llava_forgery.hosts.lora import LoraSettings as LoraSettings
    from llava_forgery.hosts.pseudo_word import attach_pseudo_word as attach_pseudo_word
    from llava_forgery.hosts.pseudo_word import load_pseudo_word as load_pseudo_word
    from llava_forgery.hosts.transformers.export import export_transformers as export_transformers
    from llava_forgery.hosts.transformers.exported_processor import (
        register_auto_classes as register_auto_classes,
    )
    from llava_forgery.hosts.transformers.model import attach_forgery as attach_forgery
    from llava_forgery.infer.overlay import photograph_overlay as photograph_overlay
    from llava_forgery.infer.predictor import ForgeryPredictor as ForgeryPredictor
    from llava_forgery.infer.verdict import Verdict as Verdict
    from llava_forgery.infer.video import judge_video as judge_video
    from llava_forgery.kfd.config import EncoderConfig as EncoderConfig
    from llava_forgery.kfd.config import KFDConfig as KFDConfig
    from llava_forgery.kfd.detector import KFDOutput as KFDOutput
    from llava_forgery.kfd.detector import (
        KnowledgeGuidedForgeryDetector as KnowledgeGuidedForgeryDetector,
    )
    from llava_forgery.simulate.degrade import DegradeConfig as DegradeConfig
    from llava_forgery.simulate.simulator import ForgerySimulator as ForgerySimulator


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        with quiet():
            return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'llava_forgery' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
