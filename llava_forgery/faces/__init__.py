"""Face crops with 68 landmarks, an identity and a split, made from photographs and videos."""
