"""DPO's loss by hand and against trl's own; its samples and batches."""

import math

import datasets
import pytest
import torch
import torch.nn.functional as F
import transformers as hf

from llava_forgery.constants import FAKE, IGNORE_INDEX, REAL
from llava_forgery.data.build_qa import FEATURES
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.images import png_bytes
from llava_forgery.kfd.calibration import Thresholds
from llava_forgery.qa.build import kfd_result
from llava_forgery.train.dpo import (
    PreferenceStage,
    dpo_loss,
    reference_log_likelihoods,
    train_preference,
)
from llava_forgery.train.preference_samples import PreferenceCollator, PreferenceSamples
from tests import tiny


def rows(scores=(0.9, 0.1, 0.05, 0.95)):
    """Fake, real, fake, real."""
    found = []
    for i, score in enumerate(scores):
        label = FAKE if i % 2 == 0 else REAL
        question = "Is this a deepfake image?"
        cited = f"{kfd_result(score)} " if score is not None else ""
        answer = "Yes. It is at the nose." if label else "No. This is a pristine image."
        found.append(
            {
                "image": {"bytes": png_bytes(tiny.picture(i), "test"), "path": None},
                "label": label,
                "regions": ["nose"] if label else [],
                "score": score,
                "messages": [
                    {"role": "user", "text": f"{cited}{question}"},
                    {"role": "assistant", "text": answer},
                ],
                "identity": f"p{i}",
            }
        )
    return datasets.Dataset.from_list(found, features=FEATURES)


@pytest.fixture(scope="module")
def vlm():
    lora = LoraSettings(r=2, alpha=4, dropout=0.5)
    return attach_forgery(*tiny.llava(), tiny.kfd(), lora=lora)


def samples_of(vlm, data=None, **options):
    return PreferenceSamples(
        rows() if data is None else data,
        prompts=vlm.prompts,
        max_length=2048,
        size=tiny.SIZE,
        **options,
    )


def test_loss_by_hand():
    policy = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    reference = torch.tensor([-2.0, -2.0, -2.0, -5.0])
    found = dpo_loss(policy, reference, beta=0.5)
    # Chosen moved by 1 and 0, rejected by -1 and 1.
    margins = (0.5 * 2, 0.5 * -1)
    expected = sum(math.log(1 + math.exp(-margin)) for margin in margins) / 2
    assert found["loss"].item() == pytest.approx(expected)
    assert found["rewards/chosen"].item() == pytest.approx(0.25)
    assert found["rewards/rejected"].item() == pytest.approx(0.0)
    assert found["rewards/margins"].item() == pytest.approx(0.25)
    assert found["rewards/accuracies"].item() == 0.5


def test_images_without_an_answer_that_fits_are_left_out(vlm):
    # 0.05 says real of a fake, 0.95 fake of a real.
    assert len(samples_of(vlm)) == 2
    assert len(samples_of(vlm, thresholds=Thresholds(0.5, 0.01, 0.99))) == 4
    assert len(samples_of(vlm, rows((None,) * 4))) == 4
    assert len(samples_of(vlm, rows((None,) * 4), most=3)) == 2
    with pytest.raises(ValueError, match="0 real and 0 fake images whose score fits"):
        samples_of(vlm, rows((0.1, 0.9)))
    with pytest.raises(ValueError, match="lacks score"):
        samples_of(vlm, rows().remove_columns("score"))


def test_there_are_as_many_pairs_of_either_label(vlm):
    """Or answers would lean to the label of which fewer scores are wrong: that of real images."""
    data = rows((0.05, None, None, None, None, None))
    labels = [data[place]["label"] for place in samples_of(vlm, data)._places]
    assert sorted(labels) == [0, 0, 1, 1]


def test_pairs_depend_on_the_seed_alone(vlm):
    data = rows((None,) * 8)
    one, two, other = (samples_of(vlm, data, seed=seed).pairs for seed in (1, 1, 2))
    assert one == two != other


def test_labels_are_on_the_last_answer_alone(vlm):
    samples = samples_of(vlm, rows((None,) * 16))
    place = next(i for i, pair in enumerate(samples.pairs) if len(pair.prompt.messages) > 2)
    for name in ("chosen", "rejected"):
        sample = samples[place][name]
        asked = sample["labels"] != IGNORE_INDEX
        said = vlm.prompts.tokenizer.decode(sample["input_ids"][asked])
        assert said == f"{getattr(samples.pairs[place], name)}<|im_end|>"


def test_a_batch_holds_the_chosen_answers_first_and_detects_each_image_once(vlm):
    samples = samples_of(vlm, rows((None,) * 4))
    samples.reference = torch.arange(8.0).view(4, 2)
    batch = PreferenceCollator(vlm.prompts.collate)([samples[0], samples[2]])
    assert batch["reference"].tolist() == [0.0, 4.0, 1.0, 5.0]
    assert len(batch["input_ids"]) == 4
    assert len(batch["forgery_images"]) == 2
    ends = [(row != IGNORE_INDEX).nonzero()[-1, 0] for row in batch["labels"]]
    tokens = [vlm.prompts.tokenizer.decode(row[: end + 1]) for row, end in
              zip(batch["input_ids"], ends, strict=True)]  # fmt: skip
    pairs = samples.pairs
    for text, answer in zip(
        tokens,
        (pairs[0].chosen, pairs[2].chosen, pairs[0].rejected, pairs[2].rejected),
        strict=True,
    ):
        assert text.endswith(f"{answer}<|im_end|>")


def test_the_first_loss_is_that_of_the_reference_also_with_dropout(vlm):
    samples = samples_of(vlm, rows((None,) * 4))
    stage = PreferenceStage(vlm, sft_weight=0.5)
    samples.reference = reference_log_likelihoods(stage, samples, 2, torch.device("cpu"))
    terms = stage.train()(**PreferenceCollator(vlm.prompts.collate)([samples[i] for i in range(4)]))
    assert stage.training
    assert vlm.training
    assert terms["rewards/margins"].item() == pytest.approx(0, abs=1e-5)
    # The mean over all tokens of the chosen answers.
    tokens = sum(int((samples[i]["chosen"]["labels"] != IGNORE_INDEX).sum()) for i in range(4))
    sft = -samples.reference[:, 0].sum().item() / tokens
    assert terms["sft"].item() == pytest.approx(sft, rel=1e-5)
    assert terms["loss"].item() == pytest.approx(math.log(2) + 0.5 * sft, rel=1e-5)


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"sft_weight": -1.0}])
def test_settings_are_checked(vlm, tmp_path, options):
    with pytest.raises(ValueError, match="beta must be positive"):
        train_preference(vlm, rows(), tmp_path / "out", **options)


@pytest.mark.slow
@pytest.mark.parametrize("sft_weight", [0.0, 0.5])
def test_loss_and_gradients_are_those_of_trl(tmp_path, sft_weight):
    """trl's own trainer, collator and reference model, on a language model without images."""
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install trl")
    words = tiny.tokenizer()
    config = hf.LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
        pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    policy, reference = hf.LlamaForCausalLM(config), hf.LlamaForCausalLM(config)
    pairs = [
        {"prompt": "Is it fake?", "chosen": " Yes. It is at the nose.", "rejected": " No."},
        {"prompt": "Where?", "chosen": " Nowhere.", "rejected": " At the mouth and chin."},
    ]
    trainer = trl.DPOTrainer(
        policy,
        reference,
        trl.DPOConfig(
            str(tmp_path), beta=0.3, per_device_train_batch_size=2, report_to="none", bf16=False,
            use_cpu=True, gradient_checkpointing=False,
            loss_type=["sigmoid", "sft"] if sft_weight else ["sigmoid"],
            loss_weights=[1.0, sft_weight] if sft_weight else None,
        ),
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=words,
    )  # fmt: skip
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    policy.train()
    theirs = trainer.compute_loss(policy, dict(batch))
    theirs.backward()
    expected = [parameter.grad.clone() for parameter in policy.parameters()]
    policy.zero_grad()

    class Bare(PreferenceStage):
        def token_log_likelihoods(self, labels, **inputs):
            return token_log_likelihoods(policy, inputs["input_ids"], labels)

    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORE_INDEX)
    with torch.no_grad():
        known = token_log_likelihoods(reference, batch["input_ids"], labels).sum(dim=1)
    ours = Bare(policy, beta=0.3, sft_weight=sft_weight)(labels, known, **inputs)
    ours["loss"].backward()
    torch.testing.assert_close(ours["loss"], theirs)
    for parameter, gradient in zip(policy.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
    logged = trainer._metrics["train"]
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert ours[name].item() == pytest.approx(logged[name][0], rel=1e-4, abs=1e-6)


def token_log_likelihoods(model, ids, labels):
    logits = model(input_ids=ids).logits[:, :-1]
    return -F.cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORE_INDEX, reduction="none"
    )
