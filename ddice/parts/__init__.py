"""Trainable parts, and the loop that trains them."""
