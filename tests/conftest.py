"""Fixtures that several packages' tests share."""

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# A name that is not on the disk is an error at once, not after the hub's retries.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def samples_dir() -> Path:
    """Photographs of 40 people, see ``samples/README.md``."""
    return Path(__file__).parents[1] / "samples"


@pytest.fixture
def fill_disk() -> Iterator[Callable[[int | None], None]]:
    """Lets no file grow beyond a number of bytes, until it is called with None.

    As a full disk, which root can fill as well; the system then says "File too large".
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(most: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if most is None else most, hard))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
