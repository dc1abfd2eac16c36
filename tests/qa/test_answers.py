"""Free text to label and regions."""

import random

import pytest

from llava_forgery.constants import FAKE, REAL, REGION_NAMES, WHOLE_FACE
from llava_forgery.qa import templates
from llava_forgery.qa.answers import ParsedAnswer, parse_answer
from llava_forgery.qa.build import build_conversation

FAKES = [
    ("Yes.", ""),
    ("yes", ""),
    ("YES!", ""),
    ("Yes. This is a deepfake image, and the artifact is at the nose and mouth.", "nose mouth"),
    ("Yes.This is a deepfake image, and the artifact is at the chin.", "chin"),
    ("**Yes**, the mouth was manipulated.", "mouth"),
    ("Answer: yes", ""),
    ("The answer is yes.", ""),
    ("I would say yes", ""),
    ("I think so.", ""),
    ("Fake.", ""),
    ("It's fake around the left eye", "eyes"),
    ("It is definitely a deepfake.", ""),
    ("This is a deep fake.", ""),
    ("This is not a real photo.", ""),
    ("It isn’t authentic: the lips were edited.", "mouth"),
    ("This image is not genuine", ""),
    ("I do not believe that this is real.", ""),
    ("I doubt that this image is authentic", ""),
    ("There is no doubt that this is a forgery.", ""),
    ("No doubt, this is a deepfake.", ""),
    ("This image is anything but real.", ""),
    ("This is far from authentic.", ""),
    ("It looks too perfect to be real.", ""),
    ("This cannot be real.", ""),
    ("The image was altered, not real.", ""),
    ("This is not a real image but a deepfake.", ""),
    ("This is a deepfake, not a real image.", ""),
    ("Is this a deepfake? Yes, at the jaw.", "chin"),
    ("The nose is untouched, but the mouth was edited.", "mouth"),
    ("The mouth is fake. The nose is untouched.", "mouth"),
    ("Yes. The eyes are fake, while the nose and mouth are real.", "eyes"),
    ("The entire face has been swapped.", "face"),
    ("Yes, the artifact is at the whole inner face.", "face"),
    ("Yes, the artifact is at the center face of the image.", "face"),
    ("The whole face, including the eyes and the nose, is fake.", "face"),
    ("The artifacts are at the nose, the mouth and the cheekbones.", "nose mouth cheeks"),
    ("There are artifacts around the eyebrows, not the eyes.", "eyebrows"),
    ("It was forged at the mouth rather than the nose.", "mouth"),
    ("Yes, it is forged at the nose. No artifacts are visible at the eyes or mouth.", "nose"),
    ("I see signs of manipulation at the nose but none at the mouth.", "nose"),
    ("Yes. Nose and mouth.", "nose mouth"),
    ("Yes. The rest of the face is real.", ""),
    ("Yes. The brows look unnatural.", "eyebrows"),
    ("Yes. The nose differs in color from the cheeks.", "nose"),
    ("Not only the nose but also the mouth is fake.", "nose mouth"),
    ("The left eye is fake, the right eye is real.", "eyes"),
    ("According to the forgery score of 0.93, this is fake.", ""),
    ("It is most likely a fake.", ""),
    ("It looks as if the chin was edited.", "chin"),
    ("Yes. A person with the naked eye would not see it.", ""),
    ("The image is AI-generated.", ""),
    ("I am not sure, but it looks fake.", ""),
    ("The jawline and lips show splicing.", "mouth chin"),
    ("Yes, the mouth is fake; the nose is fine and shows no artifacts.", "mouth"),
    ("This is a realistic-looking fake.", ""),
    ("Neither the eyes nor the nose are real.", "eyes nose"),
    ("Mouth: fake. Nose: untouched.", "mouth"),
    ("It is fake at the nose, the mouth and the chin are real.", "nose"),
    ("The nose, the mouth and the chin are fake.", "nose mouth chin"),
    ("The forged area is the eyes, nose, and mouth.", "eyes nose mouth"),
    ("Yes. This is a deepfake image, and the artifact is at the center of the face.", "face"),
    ("Except for the eyes, everything is fake.", ""),
    ("The whole face is fake except for the eyes", "face"),
    ("Yes. There is a visible boundary around the mouth; the eyes look normal.", "mouth"),
    ("yes it is a fake image and the artifact is in the lips", "mouth"),
    ("The image has been tampered with. The nose does not look natural.", "nose"),
    ("This is an inauthentic image.", ""),
    ("Is this real? No.", ""),
    ("The nose is not manipulated, but the eyes are.", "eyes"),
    ("The nose is fake, but the eyes are not.", "nose"),
    ("Unlike the eyes, the mouth is fake.", "mouth"),
    ("It isn't untouched: the cheeks were retouched.", "cheeks"),
    ("The eyes are blurry but the mouth is fine. Fake.", "eyes"),
    ("It's hard to tell, but I believe that it is fake.", ""),
    ("I see artifacts near the nostrils", "nose"),
    ("Yes. I see no reason to believe that this is real.", ""),
]
REALS = [
    "No.",
    "no",
    "Nope!",
    "no, it is pristine",
    "No it is real",
    "No. This is a pristine image.",
    "No, pristine.",
    "Answer: No.",
    "Deepfake: no",
    "My answer is no",
    "I'd say no.",
    "I don't think so.",
    "Definitely not.",
    "Not at all.",
    "This is not a deepfake",
    "This isn't a deepfake image.",
    "This isnt fake",
    "The image is real",
    "Real.",
    "I don't see any signs of manipulation",
    "I could not find any traces of editing.",
    "I can't see any artifacts.",
    "There is no evidence of tampering.",
    "No signs of manipulation are visible.",
    "No artifacts were found, so it is real.",
    "There are no signs of splicing, blending or manipulation.",
    "It has been neither edited nor manipulated.",
    "The photo is free of artifacts.",
    "This photo lacks any signs of editing.",
    "A genuine photograph without artifacts.",
    "It is unlikely that this is a deepfake.",
    "I do not believe this is fake.",
    "There is nothing to suggest that this is fake.",
    "I see no real evidence of manipulation.",
    "This is a real image and not a deepfake.",
    "This is a real face with natural eyes and a big nose.",
    "This is not a deepfake but a real image.",
    "The image is real: eyes, nose and mouth are consistent.",
    "There is no reason to doubt that this is real.",
    "No part of the face was forged.",
    "The whole face is untouched.",
    "Is it fake? No, it looks genuine.",
    "Real or fake? It is real.",
    "It shows JPEG artifacts but is not manipulated.",
    "Nothing in this image was altered.",
    "It seems authentic rather than fake.",
    "No. The image is real and the nose is natural.",
    "This is an original photograph.",
    "Is this image real? Yes.",
    "I wouldn't say it's fake.",
    "The image is likely authentic, although the forgery score is 0.61.",
    "No evidence of forgery was found in the eyes, nose, or mouth. The image is pristine.",
    "This image isn't a fake, it's real.",
]
UNDECIDED = [
    ("", ""),
    ("   \n ", ""),
    ("?", ""),
    ("The person is smiling.", ""),
    ("The person has brown eyes and a big nose.", ""),
    ("Yes, this is a pristine image.", ""),
    ("No, this is a deepfake.", ""),
    ("Yes and no.", ""),
    ("yes/no", ""),
    ("I am not sure.", ""),
    ("I cannot tell if this is fake or real.", ""),
    ("It is hard to say whether the nose is fake.", ""),
    ("It could be real or fake.", ""),
    ("This might be a deepfake.", ""),
    ("It may not be real.", ""),
    ("There is a 5% chance that it is fake.", ""),
    ("The nose is untouched.", ""),
    ("There are no artifacts at the nose.", ""),
    ("The eyes, the nose and the mouth are real.", ""),
    ("The forgery score is 0.93, so I am very sure.", ""),
    ("According to KFD prediction, the forgery score is 0.12.", ""),
    ("Is this a deepfake image?", ""),
    ("Deepfakes often show artifacts at the mouth.", ""),
    ("It is real. It is fake.", ""),
    ("As a deepfake detection expert I look at the eyes.", ""),
    ("The face is real except for the nose.", "nose"),
    ("Nose and mouth.", "nose mouth"),
    ("At the left cheek", "cheeks"),
    ("Not the nose.", ""),
    ("No. This is a pristine image. Yes. This is a deepfake image.", ""),
    ("Only the nose is real.", ""),
    ("The image may have been edited at the chin.", "chin"),
    ("No artifacts at the nose, nor at the mouth.", ""),
]


@pytest.mark.parametrize(("text", "regions"), FAKES)
def test_fake(text, regions):
    assert parse_answer(text) == ParsedAnswer(FAKE, tuple(regions.split()))


@pytest.mark.parametrize("text", REALS)
def test_real(text):
    assert parse_answer(text) == ParsedAnswer(REAL, ())


@pytest.mark.parametrize(("text", "regions"), UNDECIDED)
def test_undecided(text, regions):
    assert parse_answer(text) == ParsedAnswer(None, tuple(regions.split()))


def test_regions_are_ordered_and_distinct():
    parsed = parse_answer("Yes. Fake at the mouth, lips, nose, chin and eyes.")
    assert parsed.regions == ("eyes", "nose", "mouth", "chin")


def region_sets():
    parts = [name for name in REGION_NAMES if name != WHOLE_FACE]
    rng = random.Random(0)
    yield (WHOLE_FACE,)
    yield tuple(parts)
    for size in (1, 2, 3):
        for _ in range(8):
            chosen = rng.sample(parts, size)
            yield tuple(name for name in REGION_NAMES if name in chosen)


@pytest.mark.parametrize("regions", list(region_sets()))
@pytest.mark.parametrize("wording", templates.YES_ANSWERS)
def test_every_yes_wording_is_read_back(wording, regions):
    text = wording.format(regions=templates.join_regions(regions))
    assert parse_answer(text) == ParsedAnswer(FAKE, regions)


@pytest.mark.parametrize("wording", templates.NO_ANSWERS)
def test_every_no_wording_is_read_back(wording):
    assert parse_answer(wording) == ParsedAnswer(REAL, ())


@pytest.mark.parametrize("seed", range(40))
def test_follow_ups_never_contradict_the_label(seed):
    rng = random.Random(seed)
    regions = rng.choice(list(region_sets()))
    for label, named in ((FAKE, regions), (REAL, ())):
        score = rng.choice((None, rng.random()))
        conversation = build_conversation(label, named, rng=rng, score=score, follow_ups=3)
        for question, answer in zip(
            conversation.messages[2::2], conversation.messages[3::2], strict=True
        ):
            parsed = parse_answer(answer.text)
            assert parsed.label in (None, label), answer.text
            if question.text in templates.WHERE.questions + templates.WHY.questions:
                assert parsed.regions == named, answer.text
            else:
                assert parsed.regions == (), answer.text
