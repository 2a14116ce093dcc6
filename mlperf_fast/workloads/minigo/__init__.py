"""Minigo: Go by self-play."""
