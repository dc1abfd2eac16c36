"""Questions and answers about faces: neutral records, their wordings, and rendering for a host."""
