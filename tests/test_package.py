"""What the package promises as a whole: public names and a light import."""

import subprocess
import sys
from pathlib import Path

import pytest

import llava_forgery

ROOT = Path(__file__).parent.parent

PUBLIC = {
    "KFDConfig", "KnowledgeGuidedForgeryDetector", "KFDOutput", "FPLConfig",
    "ForgeryPromptLearner", "ForgerySimulator", "attach_forgery", "ForgeryPredictor", "Verdict",
}  # fmt: skip


def test_public_names():
    assert set(llava_forgery.__all__) == PUBLIC | {"__version__"}
    for name in PUBLIC:
        assert getattr(llava_forgery, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llava_forgery.nothing


def test_import_is_light():
    code = (
        "import sys, llava_forgery, llava_forgery.cli;"
        "print([m for m in ('torch', 'transformers', 'cv2', 'datasets') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_prediction_loads_what_it_needs():
    """No training, simulation or evaluation, and at most 46 files."""
    code = (
        "import sys\n"
        "from llava_forgery import ForgeryPredictor\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.startswith('llava_forgery.') and '__init__' not in module.__file__:\n"
        "        print(name)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = result.stdout.split()
    rooms = {name.split(".")[1] for name in loaded}
    assert "infer" in rooms, result.stderr
    assert not rooms & {"train", "data", "evaluation", "simulate", "convert", "cli"}
    assert len(loaded) <= 46, sorted(loaded)
