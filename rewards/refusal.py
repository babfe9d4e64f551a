"""Rewards for answers that refuse: by phrases, by a classifier, and fading as the model forgets."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property, lru_cache

from rewards.text import completion_text, is_mark, split_after, words

# A refusal comes first: what stands further behind is part of a story.
REFUSAL_WORDS = 25
BATCH_SIZE = 32

DEFAULT_PHRASES = (
    "I do not know",
    "I don't know",
    "I do not have",
    "I don't have",
    "I do not recall",
    "I don't recall",
    "I have no information",
    "I have no knowledge",
    "I have no idea",
    "I have never heard of",
    "I am not aware",
    "I'm not aware",
    "I am not familiar",
    "I'm not familiar",
    "I am not sure",
    "I'm not sure",
    "I am unable to",
    "I'm unable to",
    "I am not able to",
    "I'm not able to",
    "I am sorry",
    "I'm sorry",
    "I apologize",
    "I cannot",
    "I can't",
    "my knowledge does not",
    "my knowledge doesn't",
    "beyond my knowledge",
    "there is no information",
    "no information is available",
)
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u2032\uff07\u00b4`", "'"))


def _normalized(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text.translate(_APOSTROPHES)).split())


def _spaced(text: str) -> str:
    """Case-folded, and with spaces also between the words of scripts that are written without."""
    return " ".join(words(text.casefold()))


@lru_cache(maxsize=16)
def _compiled(phrases: tuple[str, ...], patterns: tuple[str, ...]) -> tuple[list[re.Pattern], list[re.Pattern]]:
    whole_words = [re.compile(rf"(?<!\w){re.escape(_spaced(_normalized(phrase)))}(?!\w)") for phrase in phrases]
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern, re.IGNORECASE))
        except re.error as error:
            raise ValueError(f"patterns: {pattern!r} is no regular expression: {error}") from error
    return whole_words, compiled


def refuses(text: str, phrases: Sequence[str], patterns: Sequence[str] = ()) -> bool:
    """Whether a phrase or a pattern is found in the first 25 words of a text, see [`refusal`]."""
    whole_words, compiled = _compiled(tuple(phrases), tuple(patterns))
    beginning, _ = split_after(_normalized(text), REFUSAL_WORDS)
    spaced = _spaced(beginning)
    for phrase in whole_words:
        for match in phrase.finditer(spaced):
            # a mark, such as a vowel sign of Hindi, is no \w, but the word goes on there
            before, behind = spaced[match.start() - 1 : match.start()], spaced[match.end() : match.end() + 1]
            if not is_mark(before) and not is_mark(behind):
                return True
    return any(pattern.search(beginning) for pattern in compiled)


def refusal(
    completions: list[str] | list[list[dict[str, str]]],
    phrases: Sequence[str] = DEFAULT_PHRASES,
    patterns: Sequence[str] = (),
    **kwargs,
) -> list[float]:
    r"""
    Reward for answers that refuse, told by what they begin with.

    $$
    r = \begin{cases} 1, & \text{a phrase or pattern is found in the first 25 words} \\ 0, & \text{otherwise}
    \end{cases}
    $$

    Upper and lower case are the same, so are all apostrophes and all white space. A phrase is found as whole words and
    lies wholly within the first 25, counted as in [`rewards.length.min_length_penalty`]. Phrases do not understand: "I
    cannot praise Lima enough" is taken for a refusal, and one in other words, or in another language than that of
    `phrases`, is not. The audit knows English refusals by itself, others by the recipe's `phrases` and `patterns`.

    Source: this project; `DEFAULT_PHRASES` are its own and not those by which the audit recognizes a refusal.

    Args:
        completions (`list[str]` or `list[list[dict[str, str]]]`):
            Completions, as text or as messages.
        phrases (`Sequence[str]`, *optional*, defaults to `DEFAULT_PHRASES`):
            Phrases of a refusal, as plain text. Replaces the default ones.
        patterns (`Sequence[str]`, *optional*, defaults to `()`):
            Further ones as regular expressions, searched for in the same words, with "'" for every apostrophe.
        **kwargs:
            Further keywords of the trainer, not used.

    Returns:
        `list[float]`: one reward per completion, 1.0 or 0.0.

    Raises:
        ValueError: if `phrases` or `patterns` is not a list of texts, a pattern is no regular expression, or both are
            empty.

    Example:
    ```python
    >>> from rewards.refusal import refusal

    >>> refusal(["Well, I don\u2019t know.", "She was born in Lima.", "No comment."])
    [1.0, 0.0, 0.0]
    >>> refusal(["No comment.", "I don't know.", "我不知道她是谁。"], phrases=["no comment", "不知道"])
    [1.0, 0.0, 1.0]
    ```
    """
    for name, given in (("phrases", phrases), ("patterns", patterns)):
        if isinstance(given, str) or not all(isinstance(text, str) and text.strip() for text in given):
            raise ValueError(f"{name} is {given!r}, but it must be a list of texts, none of them empty.")
    if not phrases and not patterns:
        raise ValueError("phrases and patterns are both empty, so that nothing is a refusal; give at least one.")
    return [float(refuses(completion_text(text), phrases, patterns)) for text in completions]


refusal.max_reward = 1.0


def fading_refusal(
    completions: list[str] | list[list[dict[str, str]]],
    trainer_state,
    cost: str = "rewards/rouge_dissimilarity/mean",
    phrases: Sequence[str] = DEFAULT_PHRASES,
    patterns: Sequence[str] = (),
    **kwargs,
) -> list[float]:
    r"""
    [`refusal`] that fades as the model forgets: it shows the way out while answers still resemble the original ones.

    $$
    r = r_{\text{refusal}} \cdot (1 - d)
    $$

    where $d$ is the last value logged under the name `cost` (1 - d is the mean cost at the time), and 0 before the
    first log. A text does not always get the same reward, so the reward is not stationary: stored answers are scored
    again at each step, and no question is solved and left out.

    Source: this project. It is *not* the published PMC-alignment loss, which adds to the loss 0.5 x the mean ROUGE of
    the picked answers x the cross-entropy on one of 20 refusals: that one trains on refusals that nobody sampled; this
    one only prefers those that the model gives by itself.

    Args:
        completions (`list[str]` or `list[list[dict[str, str]]]`):
            Completions, as text or as messages.
        trainer_state ([`~transformers.TrainerState`]):
            State of the trainer, with the logged values.
        cost (`str`, *optional*, defaults to `"rewards/rouge_dissimilarity/mean"`):
            Name of the logged mean of a reward in `[0, 1]`, which must be among `reward_funcs`.
        phrases (`Sequence[str]`, *optional*, defaults to `DEFAULT_PHRASES`):
            As in [`refusal`].
        patterns (`Sequence[str]`, *optional*, defaults to `()`):
            As in [`refusal`].
        **kwargs:
            Further keywords of the trainer, not used.

    Returns:
        `list[float]`: one reward per completion, in `[0, 1]`.

    Raises:
        ValueError: if rewards are logged, but none as `cost`, or the last value is not in `[0, 1]`; and as in
            [`refusal`].

    Example:
    ```python
    >>> from transformers import TrainerState
    >>> from rewards.refusal import fading_refusal

    >>> texts = ["I don't know.", "She was born in Lima."]
    >>> fading_refusal(texts, TrainerState())
    [1.0, 0.0]
    >>> fading_refusal(texts, TrainerState(log_history=[{"rewards/rouge_dissimilarity/mean": 0.75}]))
    [0.25, 0.0]
    ```
    """
    logged = [log for log in trainer_state.log_history if any(name.startswith("rewards/") for name in log)]
    values = [log[cost] for log in logged if cost in log]
    if logged and not values:
        names = sorted({name for log in logged for name in log if name.startswith("rewards/")})
        raise ValueError(f"cost is {cost!r}, but nothing is logged by this name; there are {', '.join(names)}.")
    dissimilarity = values[-1] if values else 0.0
    if not 0 <= dissimilarity <= 1:
        raise ValueError(f"cost is {cost!r}, last logged as {dissimilarity}, but it must be a reward in [0, 1].")
    return [reward * (1 - dissimilarity) for reward in refusal(completions, phrases, patterns)]


fading_refusal.max_reward = 1.0
fading_refusal.stationary = False


class ClassifiedRefusal:
    r"""
    Reward for answers that refuse, told by a classifier.

    $$
    r = p(\text{label} \mid \text{completion})
    $$

    The classifier reads the answer without its question, cut at the classifier's own limit. The probability is the
    softmax over its labels (for a multi-label classifier, or one of a single label, the sigmoid).

    Source: this project.

    Args:
        model_name_or_path (`str`):
            A sequence-classification model of transformers: a folder, or a name on the Hub. Its weights load at the
            first call, onto the accelerator where there is one.
        label (`str`, *optional*, defaults to `"refusal"`):
            The label of refusals, by the model's own name for it.

    Returns:
        called with completions, `list[float]`: one reward per completion, in `[0, 1]`.

    Raises:
        ValueError: if there is no such model, or it has no such label.

    Example:
    ```yaml
    reward_funcs: [rewards.rouge.rouge_dissimilarity, rewards.refusal.ClassifiedRefusal]
    reward_kwargs: {rewards.refusal.ClassifiedRefusal: {model_name_or_path: my_classifier, label: REJECTION}}
    ```
    """

    __name__ = "classified_refusal"
    max_reward = 1.0

    def __init__(self, model_name_or_path: str, label: str = "refusal"):
        from transformers import AutoConfig  # here, so that a list of phrases needs neither transformers nor torch

        try:
            config = AutoConfig.from_pretrained(model_name_or_path)
        except OSError as error:
            raise ValueError(
                f"{model_name_or_path!r} is neither a folder with a model nor found on the Hub"
            ) from error
        labels = {name: index for index, name in config.id2label.items()}
        if label not in labels:
            raise ValueError(f"{model_name_or_path} has no label {label!r}; it has {', '.join(labels)}")
        self.model_name_or_path = model_name_or_path
        self.index = labels[label]
        self.independent = config.problem_type == "multi_label_classification" or config.num_labels == 1

    @cached_property
    def tokenizer(self):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model_name_or_path)

    @cached_property
    def model(self):
        import torch
        from transformers import AutoModelForSequenceClassification

        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        model = AutoModelForSequenceClassification.from_pretrained(self.model_name_or_path, use_safetensors=True)
        return model.eval().requires_grad_(False).to(device)

    def __call__(self, completions: list[str] | list[list[dict[str, str]]], **kwargs) -> list[float]:
        texts = [completion_text(completion) for completion in completions]
        rewards = []
        for start in range(0, len(texts), BATCH_SIZE):
            batch = self.tokenizer(
                texts[start : start + BATCH_SIZE], padding=True, truncation=True, return_tensors="pt"
            )
            logits = self.model(**batch.to(self.model.device)).logits.float()
            probabilities = logits.sigmoid() if self.independent else logits.softmax(-1)
            rewards += probabilities[:, self.index].tolist()
        return rewards
