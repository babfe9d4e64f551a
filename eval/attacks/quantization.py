"""Quantization attack: rounding the weights may undo a small change, so the model is loaded in 8 and in 4 bits."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import torch
from transformers import PreTrainedModel
from trl import ModelConfig

from eval.attacks.altered import forget_measures, recovered_share
from eval.data import QuestionSet
from eval.passes import ModelPasses
from pmc_rl.models import is_quantized, load_merged, load_model


def why_not(model_args: ModelConfig) -> str | None:
    """Why the attack cannot be run; None if it can."""
    if find_spec("bitsandbytes") is None:
        return "the package bitsandbytes is not installed; pip install -e '.[quantization]'"
    if is_quantized(model_args):
        return "not applicable: the model was trained quantized"
    return None


def quantization_attack(
    passes: ModelPasses, before: ModelPasses, forget: QuestionSet, load: Callable[[int], PreTrainedModel]
) -> dict:
    """
    Recall and probability of the truth from 8 and 4 bits, their change, and the share of the way back by recall.

    `passes` is the unlearned model, which `load` makes in as many bits as it is given, `before` the one before.
    """
    unlearned_recalls, unlearned_probability = forget_measures(passes, forget)
    unlearned_recall = fmean(unlearned_recalls.values())
    before_recall = fmean(forget_measures(before, forget)[0].values())
    passes.release()  # one model at a time
    before.release()
    results = {}
    for bits in (8, 4):
        name = f"{bits} bit"
        altered = passes.altered(
            f"{passes.name}, {name}", f"{passes.fingerprint} {name}", lambda bits=bits: load(bits)
        )
        recalls, probability = forget_measures(altered, forget)
        recall = fmean(recalls.values())
        altered.release()
        results[name] = {
            "recall": recall,
            "recall_by_row": recalls,
            "recall_change": recall - unlearned_recall,
            "probability": probability,
            "probability_change": probability - unlearned_probability,
            "recovered": recovered_share(recall, unlearned_recall, before_recall),
            "n": len(forget.questions),
        }
    return results


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
