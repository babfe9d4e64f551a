"""Quantization attack: rounding the weights may undo a small change, so the model is loaded in 8 and in 4 bits."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel
from trl import ModelConfig

from eval.attacks.altered import altered_measures
from eval.passes import ModelPasses
from eval.sets import QuestionSet
from pmc_rl.models import load_merged, load_model


def quantization_attack(
    passes: ModelPasses, before: ModelPasses, forget: QuestionSet, load: Callable[[int], PreTrainedModel]
) -> dict:
    """
    Recall and probability of the truth from 8 and 4 bits, their change, and the share of the way back by recall.

    `passes` is the unlearned model, which `load` makes in as many bits as it is given, `before` the one before.
    """
    states = {f"{bits} bit": partial(load, bits) for bits in (8, 4)}
    unlearned, *quantized = altered_measures(passes, before, forget, states)
    return {
        name: {
            **measures,
            **{f"{key}_change": measures[key]["mean"] - unlearned[key]["mean"] for key in ("recall", "probability")},
            "n": len(forget.questions),
        }
        for name, measures in zip(states, quantized, strict=True)
    }


def load_quantized(
    model_args: ModelConfig, bits: int, dtype: torch.dtype, device: torch.device, folder: Path
) -> PreTrainedModel:
    """
    A model with its linear layers, but for the head, in 8 (int8) or 4 bits (nf4).

    An adapter is merged first, in `dtype`: quantized apart from its base, it would escape the rounding. The merged
    model is in a temporary folder inside `folder` while it is loaded.
    """
    quantized = replace(model_args, load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_quant_type="nf4")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        if Path(model_args.model_name_or_path, "adapter_config.json").is_file():
            load_merged(model_args, dtype, torch.device("cpu")).save_pretrained(temporary)
            quantized = replace(quantized, model_name_or_path=temporary)
        return load_model(quantized, dtype, device)
