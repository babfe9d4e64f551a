"""The audit of unlearned models; the only part of the project that reads the answers to be forgotten."""
