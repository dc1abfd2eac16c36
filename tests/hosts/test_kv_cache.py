"""What transformers calls the cache, before and after it was renamed."""

import inspect

import pytest
from transformers import LlamaForCausalLM

from llava_forgery.hosts import kv_cache
from llava_forgery.hosts.kv_cache import CACHE, NEW, OLD, cache_in, takes_cache


def forward(self, input_ids=None, past_key_values=None, **kwargs):
    return self, input_ids, past_key_values, kwargs


def test_the_name_is_the_one_of_this_transformers():
    assert CACHE in inspect.signature(LlamaForCausalLM.forward).parameters
    output = inspect.signature(LlamaForCausalLM.prepare_inputs_for_generation).parameters
    assert CACHE in output


def test_either_name_is_found():
    assert (
        cache_in({NEW: 1, "other": 2}) == cache_in({OLD: 1}) == cache_in({NEW: None, OLD: 1}) == 1
    )
    assert cache_in({"other": 2}) is None


@pytest.fixture
def renamed(monkeypatch):
    monkeypatch.setattr(kv_cache, "CACHE", NEW)


@pytest.mark.usefixtures("renamed")
def test_the_old_name_is_filled_from_the_new_one():
    taught = takes_cache(forward)
    assert taught("me", input_ids=3, cache="kept", more=1) == ("me", 3, "kept", {"more": 1})
    assert taught("me", 3, past_key_values="old") == ("me", 3, "old", {})
    assert taught("me", 3, "placed") == ("me", 3, "placed", {})
    assert list(inspect.signature(taught).parameters) == [
        "self", "input_ids", OLD, NEW, "kwargs"
    ]  # fmt: skip
    inspect.signature(taught).bind("me", input_ids=3, cache=None)


@pytest.mark.usefixtures("renamed")
def test_what_needs_no_teaching_stays_itself():
    taught = takes_cache(forward)
    assert takes_cache(taught) is taught
    for function in (lambda self, cache=None: 0, lambda self, input_ids: 0):
        assert takes_cache(function) is function


def test_before_the_renaming_nothing_changes(monkeypatch):
    monkeypatch.setattr(kv_cache, "CACHE", OLD)
    assert takes_cache(forward) is forward
