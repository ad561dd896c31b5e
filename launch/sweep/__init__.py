"""Sweeps: many trainings, each a run of its own, and what they show together."""
