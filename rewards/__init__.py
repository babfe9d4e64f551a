"""Rewards and penalties for collapse training: plain functions in TRL's GRPO contract, one file a family."""
