"""Measurements of speed and memory on the user's own machine."""
