"""From photographs to face crops with 68 landmarks, an identity and a split."""
