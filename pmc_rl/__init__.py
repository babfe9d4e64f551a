"""Partial Model Collapse unlearning as rejection-sampling fine-tuning on top of TRL."""

import logging
import os

# A tool for forgetting reports to nobody unasked. Read by huggingface_hub at import, so it must come first.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Two OpenMP threads that wait by spinning take the cores from each other as soon as another program wants one. Read by
# libgomp and libiomp when torch loads them, so it must come before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# In 8 bit it has a line for each layer and token about a cast that is meant, at import one about an optional kernel.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
