"""Alarms: what can be seen of a training without an environment, and when not to trust it."""
