"""The audit of unlearned models; the only part of the project that reads the answers to be forgotten."""

import pmc_rl  # noqa: F401  switches telemetry off, before `evaluate` and `datasets` read the setting
