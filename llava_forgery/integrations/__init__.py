"""The skill in other people's programs."""
