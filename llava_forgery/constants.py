"""Names and numbers shared by all parts of the package."""

REAL = 0
FAKE = 1
LABEL_NAMES = ("real", "fake")

# Label that torch's cross-entropy ignores, for unsupervised tokens.
IGNORE_INDEX = -100

IMAGE_TOKEN = "<image>"
FORGERY_TOKEN = "<forgery>"
PSEUDO_WORD = "[*]"

# Regions that a simulated forgery can touch, in the order in which answers name them. "face" is
# the whole inner face: it covers the others and never occurs with them.
REGION_NAMES = ("eyes", "eyebrows", "nose", "mouth", "chin", "cheeks", "face")
WHOLE_FACE = "face"
