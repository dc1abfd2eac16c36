"""What files name is not downloaded, whoever wrote them; code beside a model is never run."""

import ast
import builtins
import shutil
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants
from PIL import Image
from transformers import AutoConfig, dynamic_module_utils
from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.downloads import allow_downloads, named_by
from llava_forgery.evaluation.scorers import load_scorer
from llava_forgery.hosts.adapter import fill_adapter
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.pseudo_word import PseudoWordConfig, attach_pseudo_word
from llava_forgery.hosts.transformers.loading import load_adapter, load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from tests import tiny

ROOT = Path(__file__).parent.parent
UNASKED = r"Models named in files are not downloaded by default: .*--allow-download"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """adapter/ with LoRA, and beside it host/."""
    folder = tmp_path_factory.mktemp("saved")
    for part in tiny.llava():
        part.save_pretrained(folder / "host")
    model, processor = load_host(folder, str(folder / "host"))
    vlm = attach_forgery(model, processor, tiny.kfd(), lora=LoraSettings(r=2))
    vlm.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def test_an_adapters_host_is_not_downloaded_unasked(folder, network):
    adapter = folder / "adapter"
    tiny.edit_json(adapter / "forgery_config.json", host__name_or_path="evil/host")
    message = rf"forgery_config\.json names the host 'evil/host', which is not on this .*{UNASKED}"
    for load in (ForgeryPredictor.from_pretrained, load_scorer):
        with pytest.raises(FileNotFoundError, match=message):
            load(adapter)
    result = CliRunner().invoke(app, ["detect", str(folder), "--model", str(adapter), "--cropped"])
    assert isinstance(result.exception, FileNotFoundError)
    assert "'evil/host'" in str(result.exception)
    assert network == []
    # The user's own word is permission enough.
    predictor = ForgeryPredictor.from_pretrained(adapter, str(folder / "host"))
    assert predictor.vlm.has_lora
    assert network == []
    with pytest.raises(RuntimeError, match="no network in tests"):
        ForgeryPredictor.from_pretrained(adapter, "mine/host")
    assert set(network) == {"huggingface.co"}


def test_allowed_it_is_looked_for_on_the_hub(folder, network, caplog):
    adapter = folder / "adapter"
    tiny.edit_json(adapter / "forgery_config.json", host__name_or_path="evil/host")
    with (
        caplog.at_level("INFO", "llava_forgery"),
        pytest.raises(RuntimeError, match="no network in tests"),
    ):
        ForgeryPredictor.from_pretrained(adapter, allow_download=True)
    assert set(network) == {"huggingface.co"}
    assert "forgery_config.json names the host 'evil/host'" in caplog.text


@pytest.mark.parametrize(
    ("encoder", "told"),
    [
        ({"kind": "open_clip", "name": "RN50", "pretrained": "openai"},
         "the encoder 'RN50' and the weights 'openai'"),
        ({"kind": "open_clip", "name": "hf-hub:evil/clip"}, "the encoder 'hf-hub:evil/clip'"),
        ({"kind": "timm", "name": "hf-hub:evil/trunk"}, "the encoder 'hf-hub:evil/trunk'"),
    ],
)  # fmt: skip
def test_a_detectors_encoder_is_not_downloaded_unasked(folder, network, encoder, told):
    config = folder / "adapter/kfd/kfd_config.json"
    tiny.edit_json(config, **{f"config__encoder__{name}": value for name, value in encoder.items()})
    message = rf"kfd_config\.json names {told}, which is not on this machine .*{UNASKED}"
    with pytest.raises(FileNotFoundError, match=message):
        KnowledgeGuidedForgeryDetector.from_pretrained(folder / "adapter/kfd")
    # Also where the host is the user's.
    with pytest.raises(FileNotFoundError, match=message):
        ForgeryPredictor.from_pretrained(folder / "adapter", str(folder / "host"))
    assert network == []
    with pytest.raises(RuntimeError, match="no network in tests"):
        KnowledgeGuidedForgeryDetector.from_pretrained(folder / "adapter/kfd", allow_download=True)
    assert network


def test_a_pseudo_words_host_is_not_downloaded_unasked(folder, network, tmp_path):
    model, processor = load_host(folder, str(folder / "host"))
    attach_pseudo_word(model, processor, PseudoWordConfig()).save_pretrained(tmp_path / "word")
    tiny.edit_json(tmp_path / "word/pseudo_word.json", host__name_or_path="evil/host")
    for kind in ("real", "fake"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        Image.fromarray(tiny.picture()).save(tmp_path / "data" / kind / "a.png")
    arguments = ["eval", "pseudo-word", "--word", tmp_path / "word", "--data", tmp_path / "data",
                 "--out", tmp_path / "out"]  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert "pseudo_word.json names the host 'evil/host', which is not" in str(result.exception)
    assert network == []
    result = CliRunner().invoke(app, [*map(str, arguments), "--allow-download"])
    assert set(network) == {"huggingface.co"}


def test_loading_and_filling_a_lora_asks_nobody_for_its_base(folder, network):
    """peft would, to see whether the host's words grew."""
    tiny.edit_json(folder / "adapter/adapter_config.json", base_model_name_or_path="evil/host")
    vlm = load_adapter(folder / "adapter", *load_host(folder, str(folder / "host")))
    fill_adapter(vlm, folder / "adapter")
    vlm.save_pretrained(folder / "again")
    assert network == []


def test_the_switches_come_back(network):
    assert dynamic_module_utils.TIME_OUT_REMOTE_CODE > 0
    asks = dynamic_module_utils.TIME_OUT_REMOTE_CODE

    def switches():
        return constants.HF_HUB_OFFLINE, dynamic_module_utils.TIME_OUT_REMOTE_CODE

    with named_by("a.json", {"host": "x"}):
        assert switches() == (True, 0)
        with named_by("b.json", {"encoder": "y"}):
            assert switches() == (True, 0)
        assert switches() == (True, 0)
    assert switches() == (False, asks)
    with allow_downloads(), named_by("a.json", {"host": "x"}):
        assert switches() == (False, asks)
        # What is allowed around holds inside.
        with allow_downloads(False), named_by("b.json", {"encoder": "y"}):
            assert switches() == (False, asks)
    with pytest.raises(ZeroDivisionError), named_by("a.json", {"host": "x"}):
        _ = 1 / 0
    assert switches() == (False, asks)
    with pytest.raises(OSError, match="other"), named_by("a.json", {"host": "x"}):
        raise OSError("other")


def test_overlapping_loads_of_threads_end_online(network):
    """The one that began first ends first."""
    inside, ended = threading.Event(), threading.Event()

    def second():
        with named_by("b.json", {"host": "y"}):
            inside.set()
            ended.wait(10)
            assert constants.HF_HUB_OFFLINE

    thread = threading.Thread(target=second)
    with named_by("a.json", {"host": "x"}):
        thread.start()
        assert inside.wait(10)
    assert constants.HF_HUB_OFFLINE
    ended.set()
    thread.join()
    assert not constants.HF_HUB_OFFLINE


def with_code(folder, marker):
    """A host whose class is a Python file beside it."""
    tiny.edit_json(folder / "config.json", model_type="evil", architectures=["Evil"],
         auto_map={"AutoConfig": "evil.EvilConfig",
                   "AutoModelForImageTextToText": "evil.Evil"})  # fmt: skip
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
        "from transformers import LlavaConfig, LlavaForConditionalGeneration\n"
        "class EvilConfig(LlavaConfig):\n    model_type = 'evil'\n"
        "class Evil(LlavaForConditionalGeneration):\n    config_class = EvilConfig\n"
    )


def test_code_beside_a_host_is_not_run_and_nobody_is_asked(folder, tmp_path, monkeypatch):
    marker, asked = tmp_path / "ran", []
    monkeypatch.setattr(builtins, "input", lambda text="": asked.append(text) or "n")
    with_code(folder / "host", marker)
    # What transformers does if it is not told.
    with pytest.raises(ValueError, match="custom code"):
        AutoConfig.from_pretrained(folder / "host")
    assert len(asked) == 1
    for host in (str(folder / "host"), None):
        with pytest.raises(ValueError, match="brings Python code of its own, which is not run"):
            ForgeryPredictor.from_pretrained(folder / "adapter", host)
    assert len(asked) == 1
    assert not marker.exists()


def test_every_auto_class_is_told_to_run_no_code():
    loaded = 0
    for path in [*ROOT.glob("llava_forgery/**/*.py"), *ROOT.glob("scripts/*.py"),
                 *ROOT.glob("eval/**/*.py")]:  # fmt: skip
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name.endswith("load_dataset") or (
                name.split(".")[0].startswith("Auto")
                # Ours: it reads an adapter, and its host by the classes that are looked at here.
                and name.split(".")[0] != "AutoForgeryModel"
                and name.split(".")[-1] in ("from_pretrained", "from_config")
            ):
                loaded += 1
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                where = f"{path}:{node.lineno}"
                assert options.get("trust_remote_code") == "False", where
            assert not any(
                k.arg == "trust_remote_code" and ast.unparse(k.value) != "False"
                for k in node.keywords
            )
    assert loaded > 10
