"""Fixtures that several packages' tests share."""

import os
from pathlib import Path

import pytest

# A name that is not on the disk is an error at once, not after the hub's retries.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def samples_dir() -> Path:
    """Photographs of 40 people, see ``samples/README.md``."""
    return Path(__file__).parents[1] / "samples"
