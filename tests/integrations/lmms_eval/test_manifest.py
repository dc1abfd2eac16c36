"""The plugin entry point of lmms-eval."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def _python(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


def test_entry_point_loads_nothing_heavy():
    heavy = ("torch", "transformers", "datasets", "lmms_eval")
    module = "llava_forgery.integrations.lmms_eval.manifest"
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    assert _python(code) == "[]"


def test_lmms_eval_finds_the_model():
    """Needs the package to be installed, or its metadata: pip install -e, setup.py egg_info."""
    code = (
        "from lmms_eval.models import get_model_manifest as get, list_available_models as names;"
        "m = get('llava_forgery');"
        "print(m.simple_class_path, m.chat_class_path, 'llava_hf' in names())"
    )
    found = _python(code).split()
    assert found == [
        "llava_forgery.integrations.lmms_eval.model.LlavaForgery",
        "llava_forgery.integrations.lmms_eval.model.LlavaForgeryChat",
        "True",
    ]


def test_classes_are_what_lmms_eval_wants():
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    from llava_forgery.integrations.lmms_eval.manifest import manifest
    from llava_forgery.integrations.lmms_eval.model import LlavaForgery, LlavaForgeryChat

    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    assert registry.get_model_class("llava_forgery") is LlavaForgeryChat
    assert registry.get_model_class("llava_forgery", force_simple=True) is LlavaForgery
