"""Questions and answers about faces: neutral conversations, their wordings, and formats."""
