"""The launcher: what it hands on, and "cuda" on a machine without one. Clients: tests/clients."""

import sys

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from llava_forgery import run
from llava_forgery.cli import app
from llava_forgery.cli import run as command
from llava_forgery.hosts import cpu
from llava_forgery.hosts.llava import compat


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that keeps what it was started with in ``sys.seen``."""
    (tmp_path / "some_client.py").write_text(
        "import sys\n"
        "assert __name__ == '__main__' and sys.modules['__main__'].__dict__ is globals()\n"
        "sys.seen = (sys.argv[1:], list(sys.called))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "called", [], raising=False)
    monkeypatch.setattr(compat, "register_any", lambda: sys.called.append("register"))
    return "some_client"


@pytest.mark.parametrize(
    ("given", "handed_on"),
    [
        (["--model-path", "DIR", "--cpu", "--help"], ["--model-path", "DIR", "--cpu", "--help"]),
        ([], []),
        (["--", "-x"], ["--", "-x"]),
    ],
)
def test_a_module_runs_as_main_with_its_own_arguments(module, given, handed_on):
    run.main([module, *given])
    assert sys.seen == (handed_on, ["register"])


def test_what_deepspeed_puts_first_is_the_modules(module):
    run.main(["--local_rank=1", module, "--deepspeed", "zero2.json"])
    assert sys.seen[0] == ["--local_rank=1", "--deepspeed", "zero2.json"]


def test_no_such_module(module):
    with pytest.raises(ImportError, match="no_such_client"):
        run.main(["no_such_client"])


@pytest.mark.parametrize("options", [[], ["--cpu"]])
def test_the_command_becomes_the_launcher(monkeypatch, options):
    started = []
    monkeypatch.setattr(command.os, "execv", lambda path, line: started.append([path, *line]))
    rest = ["llava.serve.cli", "--model-path", "DIR", "--help", "--cpu"]
    result = CliRunner().invoke(app, ["run", *options, *rest])
    assert result.exit_code == 0, result.output
    python = sys.executable
    assert started == [[python, python, "-m", "llava_forgery.run", *options, *rest]]


@pytest.fixture
def on_cpu(monkeypatch):
    for owner in (torch.Tensor, nn.Module):
        for name in ("to", "cuda"):
            monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(
        PreTrainedModel, "from_pretrained", vars(PreTrainedModel)["from_pretrained"]
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cpu.use_cpu()


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 0), 0, "cpu"])
def test_tensors_and_modules_stay_on_the_cpu(on_cpu, device):
    tensor = torch.ones(2)
    assert tensor.to(device).device.type == "cpu"
    moved = tensor.to(device=device, dtype=torch.float16, non_blocking=True)
    assert (moved.device.type, moved.dtype) == ("cpu", torch.float16)
    assert tensor.to(device, torch.float16).dtype == torch.float16
    layer = nn.Linear(2, 2)
    assert layer.to(device) is layer.to(device=device) is layer
    assert tensor.cuda(0) is tensor
    assert layer.cuda() is layer


def test_all_else_is_moved_as_before(on_cpu):
    tensor = torch.ones(2)
    assert tensor.to(torch.float64).dtype == torch.float64
    assert tensor.to(torch.zeros(1, dtype=torch.int64)).dtype == torch.int64
    assert tensor.to("meta").device.type == nn.Linear(2, 2).to("meta").weight.device.type == "meta"


@pytest.mark.parametrize("device_map", ["cuda:0", {"": "cuda"}, "auto", None])
def test_models_are_loaded_on_the_cpu(on_cpu, tmp_path, device_map):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
    LlamaForCausalLM(LlamaConfig(num_attention_heads=1, **sizes)).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(
        tmp_path, device_map=device_map, attn_implementation="flash_attention_2"
    )
    assert model.device.type == "cpu"
    assert model.config._attn_implementation == "sdpa"


def test_a_gpu_that_is_seen_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match='CUDA_VISIBLE_DEVICES=""'):
        cpu.use_cpu()
