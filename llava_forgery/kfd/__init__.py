"""Knowledge-guided Forgery Detector: consistency maps, mask and score of an image."""
