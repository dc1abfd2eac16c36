"""The command ``llava-forgery serve``: what it refuses before it loads anything."""

from pathlib import Path

import pytest

from llava_forgery.cli.serve import named_models
from llava_forgery.serve.settings import Settings


def test_models_by_name():
    assert named_models(["a/b", "c=d"]) == {"b": Path("a/b"), "c": Path("d")}
    assert named_models([]) == {"default": None}
    with pytest.raises(ValueError, match="given twice"):
        named_models(["a=x", "a=y"])


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_beyond_the_loopback_a_token_is_needed(host):
    with pytest.raises(ValueError, match="needs a token"):
        Settings(host=host)
    assert Settings(host=host, token="secret").token == "secret"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1"])
def test_on_the_loopback_none(host):
    assert Settings(host=host).is_loopback


@pytest.mark.parametrize("change", [{"max_bytes": 0}, {"queue": -1}, {"token": "  "}])
def test_limits_are_checked(change):
    with pytest.raises(ValueError, match="or more|empty"):
        Settings(**change)
