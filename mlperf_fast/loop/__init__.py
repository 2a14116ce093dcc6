"""The one training loop: train.py, and what it opens: step, dist, clock, checkpoint, terminal."""
