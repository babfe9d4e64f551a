"""A sequence-classification model as a reward, as in TRL's GRPOTrainer: its logit for question and answer."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from pmc_rl.errors import RecipeError, nearest_path, one_line

BATCH_SIZE = 64


class RewardModel:
    """
    The reward of TRL's GRPOTrainer for a model's name: prompt and completion as text, or the conversation through the
    reward model's own chat template, in; its logit out.

    Args:
        name (`str`): a folder or a name on the Hub. Its config and tokenizer are read at once, its weights when the
            first completions come.

    Raises:
        RecipeError: there is no such model, or it has more than one logit.
    """

    def __init__(self, name: str):
        self.name = name
        try:
            config = AutoConfig.from_pretrained(name)
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            where = f"reward_funcs: no reward model can be loaded from {name!r}"
            raise RecipeError([f"{where} ({one_line(error)}){nearest_path(Path(name))}"]) from error
        if config.num_labels != 1:
            raise RecipeError([f"reward_funcs: {name!r} has {config.num_labels} labels; a reward model has one"])
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        config.pad_token_id = self.tokenizer.pad_token_id  # which position is an answer's last is told by it
        self.config = config
        self.model: torch.nn.Module | None = None

    @torch.no_grad()
    def __call__(self, prompts: list, completions: list, **kwargs) -> list[float]:
        if self.model is None:
            device = torch.accelerator.current_accelerator() or torch.device("cpu")
            model = AutoModelForSequenceClassification.from_pretrained(
                self.name, config=self.config, use_safetensors=True
            )
            self.model = model.eval().to(device)
        if isinstance(prompts[0], str):
            # completions come without the space they begin with
            texts = [f"{prompt} {completion}" for prompt, completion in zip(prompts, completions, strict=True)]
        else:
            texts = [
                self.tokenizer.apply_chat_template(prompt + completion, tokenize=False)
                for prompt, completion in zip(prompts, completions, strict=True)
            ]
        rewards: list[float] = []
        for start in range(0, len(texts), BATCH_SIZE):
            batch = self.tokenizer(
                texts[start : start + BATCH_SIZE],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                add_special_tokens=False,
            )
            rewards += self.model(**batch.to(self.model.device)).logits[:, 0].float().tolist()
        return rewards
