"""Names and numbers that every part of the package shares."""

REAL = 0
FAKE = 1
LABEL_NAMES = ("real", "fake")

# What torch's cross-entropy skips; the mark of tokens that are not supervised.
IGNORE_INDEX = -100

IMAGE_TOKEN = "<image>"
FORGERY_TOKEN = "<forgery>"
PSEUDO_WORD = "[*]"

# Regions that a simulated forgery can touch, in the order in which answers name them. "face" is
# the whole inner face: it covers the others and never stands beside them.
REGION_NAMES = ("eyes", "eyebrows", "nose", "mouth", "chin", "cheeks", "face")
WHOLE_FACE = "face"
