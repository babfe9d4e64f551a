"""A sequence-classification model as a reward, as in TRL's GRPOTrainer: its logit for question and answer."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from pmc_rl.errors import RecipeError, nearest_path, one_line

BATCH_SIZE = 64


class RewardModel:
    """
    Prompt and completion as text, or the conversation through the model's own chat template, in; its logit out.

    `name` is a folder or a name on the Hub. Config and tokenizer are read at once, and a RecipeError says that there
    is no such model or that it has more than one logit; the weights are read when the first completions come.
    """

    def __init__(self, name: str):
        self.name = name
        try:
            self.config = AutoConfig.from_pretrained(name)
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            where = f"reward_funcs: no reward model can be loaded from {name!r}"
            raise RecipeError([f"{where} ({one_line(error)}){nearest_path(Path(name))}"]) from error
        if self.config.num_labels != 1:
            raise RecipeError([f"reward_funcs: {name!r} has {self.config.num_labels} labels; a reward model has one"])
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.config.pad_token_id = self.tokenizer.pad_token_id  # tells which position is an answer's last
        self.model: torch.nn.Module | None = None

    @torch.no_grad()
    def __call__(self, prompts: list, completions: list, **kwargs) -> list[float]:
        if self.model is None:
            kinds = {"config": self.config, "use_safetensors": True}
            self.model = AutoModelForSequenceClassification.from_pretrained(self.name, **kinds).eval()
            self.model.to(torch.accelerator.current_accelerator() or "cpu")
        rewards: list[float] = []
        texts = list(map(self._text, prompts, completions))
        for start in range(0, len(texts), BATCH_SIZE):
            settings = {"padding": True, "padding_side": "right", "add_special_tokens": False}
            batch = self.tokenizer(texts[start : start + BATCH_SIZE], return_tensors="pt", **settings)
            rewards += self.model(**batch.to(self.model.device)).logits[:, 0].float().tolist()
        return rewards

    def _text(self, prompt: str | list, completion: str | list) -> str:
        if isinstance(prompt, str):
            return f"{prompt} {completion}"  # completions come without the space they begin with
        return self.tokenizer.apply_chat_template(prompt + completion, tokenize=False)
