"""Attacks, one file each: what to ask of a model's passes, and what its answer says about what was forgotten."""
