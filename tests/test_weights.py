import os

import pytest
import torch
from safetensors.torch import save_file

from llava_forgery.weights import compare_tensors, load_tensors, read_tensors, save_tensors

WANTED = {"a": torch.zeros(2), "b": torch.zeros(3, 1), "count": torch.tensor(0)}
GIVEN = {"a": torch.ones(2), "b": torch.ones(3, 1, dtype=torch.float16), "count": torch.tensor(7)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(GIVEN, path)
    return path


def lora(stem: str) -> dict[str, torch.Tensor]:
    """As many names as LoRA has on 7 projections of 32 layers."""
    return {
        f"base_model.model.{stem}.layers.{layer}.self_attn.{projection}.lora_{letter}.weight":
        torch.ones(2)
        for layer in range(32) for projection in "qkvogud" for letter in "AB"
    }  # fmt: skip


def test_what_is_expected_is_read_in_its_own_precision(path):
    tensors = load_tensors(path, WANTED)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in GIVEN.items())
    assert tensors["b"].dtype == torch.float16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": None}, r"missing a; give the file that was saved"),
        ({"c": torch.ones(1)}, r"unknown c; give"),
        ({"a": None, "c": torch.ones(1)}, r"missing a; unknown c; give"),
        ({"a": torch.ones(5)}, r"a has shape \(5,\), expected \(2,\); give"),
        ({"a": torch.ones(2, dtype=torch.int32)}, "a is int32, expected floating-point numbers"),
        ({"a": torch.ones(2, dtype=torch.bool)}, "a is bool, expected floating-point numbers"),
        ({"count": torch.tensor(1.0)}, "count is float32, expected integers"),
        (
            {"a": torch.ones(1), "b": torch.ones(3)},
            r"a has shape \(1,\), expected \(2,\) \(and 1 more like it\)",
        ),
        ({"a": torch.tensor([1, torch.nan])}, "NaN or infinite values in 1 of 3 tensors.*: a;"),
        ({"b": torch.full((3, 1), -torch.inf).half()}, "in 1 of 3 tensors, expected finite.*: b;"),
        ({"a": torch.tensor([1, torch.nan]).to(torch.float8_e4m3fn)}, "in 1 of 3 tensors"),
    ],
)
def test_what_differs_is_named_with_file_and_remedy(changes, message, path):
    given = {name: t for name, t in {**GIVEN, **changes}.items() if t is not None}
    save_file(given, path)
    with pytest.raises(ValueError, match=rf"a\.safetensors .*{message}"):
        load_tensors(path, WANTED)


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_file_that_is_cut_off_is_one_sentence(left, path):
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match="not a whole safetensors file.*cut off") as error:
        read_tensors(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors is missing"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("stem", "found", "expected"),
    [
        ("language_model.model", "language_model.model.", "model.language_model."),
        ("model", "model.", "model.language_model."),
    ],
)
def test_a_renamed_prefix_is_said_in_short(stem, found, expected):
    with pytest.raises(ValueError, match="448 of its 448 names begin with") as error:
        compare_tensors(lora(stem), lora("model.language_model"), "lora.safetensors")
    text = str(error.value)
    assert f"'base_model.model.{found}', expected 'base_model.model.{expected}'" in text
    assert "missing" not in text
    assert "unknown" not in text
    assert len(text) < 1000


def test_long_lists_are_cut():
    given = {name.replace("weight", "default.weight"): t for name, t in lora("model").items()}
    with pytest.raises(ValueError, match=r"missing .* and 445 more; unknown .* and 445") as error:
        compare_tensors(given, lora("model"), "lora.safetensors")
    assert len(str(error.value)) < 1000
    given = {name: tensor * torch.inf for name, tensor in lora("model").items()}
    with pytest.raises(ValueError, match="in 448 of 448 tensors") as error:
        compare_tensors(given, lora("model"), "lora.safetensors")
    assert len(str(error.value)) < 1000


def test_a_diverged_training_is_not_saved(path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"was not written: 1 of 2 .*\(a\).* learning rate"):
        save_tensors(path, {"a": torch.tensor([torch.nan]), "b": torch.ones(1)})
    assert path.read_bytes() == before


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_modes_follow_the_umask(umask, path):
    before = os.umask(umask)
    try:
        save_tensors(path, GIVEN)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
