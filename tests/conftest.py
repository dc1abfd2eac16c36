"""Fixtures that several packages' tests share."""

import os
from pathlib import Path

import pytest

# A name that is not on the disk is an error at once, not after the hub's retries.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def london_dir() -> Path:
    """Real photographs; without them the tests that need them are skipped."""
    default = Path(__file__).parents[2] / "shared" / "faces" / "london"
    folder = Path(os.environ.get("LLAVA_FORGERY_FACES", default))
    if not (folder / "eyes.csv").is_file():
        pytest.skip(f"no photographs with eyes.csv in {folder}; set LLAVA_FORGERY_FACES")
    return folder
