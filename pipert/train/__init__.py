"""The main job: train a byte-level GPT through a pipeline, and show that it computed what one process computes."""
