"""Fixtures that several packages' tests share."""

import functools
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

# A name that is not on the disk is an error at once, not after the hub's retries.
os.environ["HF_HUB_OFFLINE"] = "1"

from huggingface_hub import constants

from llava_forgery.integrations.lmms_eval import on_import

# Tests share a process, and choose themselves what is registered in it.
on_import.register_on_import = functools.wraps(on_import.register_on_import)(lambda: None)


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """What a command that ran in this process left is not the next test's."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_float32_matmul_precision("highest")


# Before transformers 5.18 no host's tower can be shared, and that is said.
TOWERS_CAN_BE_SHARED = Version(transformers.__version__) >= Version("5.18")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """Skip what needs a shared tower where transformers is too old for one."""
    yield from _skip_without_shared_tower()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """As in the set-up."""
    yield from _skip_without_shared_tower()


def _skip_without_shared_tower() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if TOWERS_CAN_BE_SHARED or "does not accept finished image features" not in str(error):
            raise
        pytest.skip("a shared tower needs transformers 5.18")


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


@pytest.fixture
def network(monkeypatch, tmp_path) -> list[str]:
    """Hosts that were looked for, of a process that is online and has nothing in its cache."""
    asked = []

    def refuse(host, *arguments, **options):
        asked.append(host)
        # An OSError would be tried again and again.
        raise RuntimeError("there is no network in tests")

    # peft looks at the variable itself.
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return asked


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums in the order of the processes that a test starts with one thread each."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
