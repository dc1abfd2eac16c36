"""The notebook of the documentation runs, and what it shows is what it showed.

python -m tests.test_notebook        # runs it and keeps its outputs
"""

import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/notebooks/first_steps.ipynb"
MOST_BYTES = 400_000


def execute(folder: Path) -> Any:
    """The notebook with the outputs of a run in ``folder``, beside the samples."""
    (folder / "samples").symlink_to(ROOT / "samples")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    with pytest.MonkeyPatch.context() as patch:
        # Its commands are those of this environment and of this source.
        patch.setenv("PATH", path)
        patch.setenv("PYTHONPATH", str(ROOT))
        client = NotebookClient(notebook, timeout=None, record_timing=False,
                                resources={"metadata": {"path": str(folder)}})  # fmt: skip
        return client.execute()


@pytest.mark.slow
def test_it_runs(tmp_path):
    notebook = execute(tmp_path)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output for output in shown if "image/png" in output.get("data", {})]
    # The photograph, the map, the curves.
    assert len(pictures) == 3
    assert (tmp_path / "first-steps/kfd/kfd_config.json").is_file()
    assert "fake from" in "".join(output.get("text", "") for output in shown)


def test_what_it_shows_is_small_and_of_no_machine():
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            assert not re.search(r"/(home|root|work|tmp)/", text), text


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        done = execute(Path(scratch))
    done.metadata = nbformat.read(NOTEBOOK, as_version=4).metadata
    for cell in done.cells:
        if "outputs" in cell:
            # Warnings of this environment's packages.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(done, NOTEBOOK)
