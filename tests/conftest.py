"""Fixtures that several packages' tests share."""

import os
from pathlib import Path

import pytest

# A name that is not on the disk is an error at once, not after the hub's retries.
os.environ["HF_HUB_OFFLINE"] = "1"


LONDON = Path(__file__).parents[2] / "shared" / "faces" / "london"


@pytest.fixture(scope="session")
def photographs_dir() -> Path | None:
    """Real photographs, for tests that draw faces where there are none."""
    folder = Path(os.environ.get("LLAVA_FORGERY_FACES", LONDON))
    return folder if (folder / "eyes.csv").is_file() else None


@pytest.fixture(scope="session")
def london_dir(photographs_dir) -> Path:
    """Real photographs; without them the tests that need them are skipped."""
    if photographs_dir is None:
        folder = os.environ.get("LLAVA_FORGERY_FACES", LONDON)
        pytest.skip(f"no photographs with eyes.csv in {folder}; set LLAVA_FORGERY_FACES")
    return photographs_dir
