"""How likely answers are under a model, teacher-forced; logits are never kept for a whole batch.

Last on the reading path: rewards such as `rewards.fluency.FluencyPenalty` ask it through original.py, and the audit.
"""

from collections.abc import Iterator

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from pmc_rl.generation import inference_mode_of, is_recurrent, read_prompts

# Tokens of a batch, padding included, and numbers of logits made at a time. On a CPU few, for its cache, but not so
# few that a large vocabulary's head is read again for every handful of tokens; an accelerator wants to be filled.
TOKENS_PER_BATCH = {"cpu": 4096, "accelerator": 8192}
LOGITS_PER_CHUNK = {"cpu": 2**22, "accelerator": 2**24}

# What some architectures do to the logits behind the head, by the name in their config.
LOGIT_TRANSFORMS = {
    "logits_scaling": lambda logits, value: logits / value,  # Granite
    "logit_scale": lambda logits, value: logits * value,  # Cohere
    "final_logit_softcapping": lambda logits, value: (logits / value).tanh() * value,  # Gemma
}

# Token ids of a prompt, and of the tokens after it that are scored.
Row = tuple[list[int], list[int]]


def kind_of_device(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else "accelerator"


@torch.no_grad()
def target_logits(model: PreTrainedModel | PeftModel, rows: list[Row]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields logits `(n, vocabulary)` at the next n target tokens of a batch, and their ids, in order of the rows.
    Equal prompts are read once."""
    with inference_mode_of(model) as base:
        # behind all but the last token of each prompt; empty where no prompt comes twice
        cache = {} if is_recurrent(base) else read_prompts(base, [prompt for prompt, _ in rows])
    starts = [len(prompt) - 1 if cache else 0 for prompt, _ in rows]
    # padded on the right, where a causal model does not look
    texts = [torch.tensor((prompt + target)[start:]) for (prompt, target), start in zip(rows, starts, strict=True)]
    input_ids = pad_sequence(texts, batch_first=True)
    if cache:  # whose prompts are padded on the left
        read = max(starts)
        mask = [[0] * (read - start) + [1] * (start + len(text)) for text, start in zip(texts, starts, strict=True)]
        cache["attention_mask"] = pad_sequence(list(map(torch.tensor, mask)), batch_first=True).to(base.device)
        cache["position_ids"] = (torch.tensor(starts)[:, None] + torch.arange(input_ids.shape[1])).to(base.device)
    predicts = [
        [False] * (len(prompt) - 1 - start) + [True] * len(target) + [False]
        for (prompt, target), start in zip(rows, starts, strict=True)
    ]
    predicts_target = pad_sequence([torch.tensor(flags) for flags in predicts], batch_first=True)
    hidden = base.get_decoder()(input_ids=input_ids.to(base.device), use_cache=bool(cache), **cache).last_hidden_state
    hidden = hidden[predicts_target.to(base.device)]
    targets = torch.tensor([token for _, target in rows for token in target], device=base.device)
    settings = base.config.get_text_config().to_dict()
    chunk = max(1, LOGITS_PER_CHUNK[kind_of_device(base.device)] // settings["vocab_size"])
    for start in range(0, len(targets), chunk):
        logits = base.get_output_embeddings()(hidden[start : start + chunk])
        for name, transform in LOGIT_TRANSFORMS.items():
            if settings.get(name) is not None:
                logits = transform(logits, settings[name])
        yield logits, targets[start : start + chunk]


def mean_log_probs(model: PreTrainedModel | PeftModel, rows: list[Row]) -> list[float]:
    """Mean log-probability (nats) of each row's target tokens, NaN where it has none; for a model in eval mode."""
    unique = {(tuple(prompt), tuple(target)): (prompt, target) for prompt, target in rows}  # equal rows are read once
    keys = sorted(unique, key=lambda key: len(key[0]) + len(key[1]))  # similar lengths share a batch
    means: dict[tuple, float] = {}
    while keys:
        longest = len(keys[-1][0]) + len(keys[-1][1])
        batch_size = max(1, TOKENS_PER_BATCH[kind_of_device(model.device)] // longest)
        batch, keys = keys[-batch_size:], keys[:-batch_size]
        log_probs = [
            -cross_entropy(logits.float(), targets, reduction="none")
            for logits, targets in target_logits(model, [unique[key] for key in batch])
        ]
        by_row = torch.cat([torch.empty(0), *(part.cpu() for part in log_probs)]).split([len(key[1]) for key in batch])
        means |= {key: float(part.mean()) for key, part in zip(batch, by_row, strict=True)}
    return [means[tuple(prompt), tuple(target)] for prompt, target in rows]
