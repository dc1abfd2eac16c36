"""The skill in third-party programs."""
