"""Partial Model Collapse unlearning as rejection-sampling fine-tuning on top of TRL."""

import os

# A tool for forgetting reports to nobody unasked. Read by huggingface_hub at import, so it must come first.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
