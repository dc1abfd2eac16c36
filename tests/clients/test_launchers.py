"""torchrun, accelerate and deepspeed start the launcher in the module's place."""

import json

import pytest

from tests import tiny_llava

tiny_llava.require_llava()
pytestmark = pytest.mark.slow

CLIENT = """\
import json, os, sys
from pathlib import Path
from llava.model.builder import load_pretrained_model
rank = os.environ["RANK"]
told = {"arguments": sys.argv[1:], "from": load_pretrained_model.__wrapped__.__module__}
Path(f"rank{rank}.json").write_text(json.dumps(told))
"""
LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"),
    "accelerate": ("accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m"),
    "deepspeed": ("deepspeed.launcher.runner", "--num_gpus", "1", "--module"),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher(client, name):
    if name != "torchrun":
        pytest.importorskip(name)
    started = client(
        "-m", *LAUNCHERS[name], "llava_forgery.run", "some_client", "--model-path", "DIR",
        DS_ACCELERATOR="cpu", RANK="0",
    )  # fmt: skip
    (started.folder / "some_client.py").write_text(CLIENT)
    started.run()
    told = sorted(started.folder.glob("rank*.json"))
    assert [path.stem for path in told] == ["rank0", "rank1"][: 2 if name == "torchrun" else 1]
    extra = ["--local_rank=0"] if name == "deepspeed" else []
    for path in told:
        assert json.loads(path.read_text()) == {
            "arguments": [*extra, "--model-path", "DIR"],
            # Only what register() has put there wraps another.
            "from": "llava.model.builder",
        }
