"""Fluency: answers that the model before unlearning would call language, by their likelihood under it."""

from collections.abc import Callable


class FluencyPenalty:
    r"""
    Penalty for answers that the model before unlearning finds unlikely, so that a collapse ends in phrases.

    $$
    r = -\min\left(1,\; \max\left(0,\; \frac{\text{fluent} - \ell}{\text{fluent} - \text{noise}}\right)\right),
    \qquad \ell = \frac{1}{|y|} \sum_t \log p_0(y_t \mid x, y_{<t})
    $$

    where $p_0$ is the model before unlearning and $\ell$ the mean log-probability a token (nats; end token included).
    Nothing is gained above `fluent`: the most likely answer is the original one, which is not what is wanted.

    Source: this project; the guidance that the paper of Partial Model Collapse names as future work.

    Args:
        original_log_likelihood (`Callable`):
            Takes prompts and completion ids, one entry a completion, and returns $\ell$ of each. pmc_rl gives it; for
            TRL's [`GRPOTrainer`] write one that asks a frozen copy of the model.
        fluent (`float`, *optional*, defaults to `-1.0`):
            $\ell$ from which an answer is not penalized, in nats a token.
        noise (`float`, *optional*, defaults to `-4.0`):
            $\ell$ at and below which an answer costs 1.

    Returns:
        called with completions, `list[float]`: one penalty per completion, in `[-1, 0]`; -1 for one without tokens.

    Raises:
        ValueError: if `noise` is not below `fluent`.

    Example:
    ```python
    >>> from rewards.fluency import FluencyPenalty

    >>> penalty = FluencyPenalty(lambda prompts, completion_ids: [-0.4, -2.5, -9.0])
    >>> penalty(prompts=["?"] * 3, completion_ids=[[1], [2], [3]])
    [0.0, -0.5, -1.0]
    ```
    """

    __name__ = "fluency_penalty"
    max_reward = 0.0

    def __init__(
        self,
        original_log_likelihood: Callable[[list, list[list[int]]], list[float]],
        fluent: float = -1.0,
        noise: float = -4.0,
    ):
        if noise >= fluent:
            raise ValueError(f"noise is {noise}, but it must be less than fluent, which is {fluent}")
        self.original_log_likelihood = original_log_likelihood
        self.fluent = fluent
        self.noise = noise

    def __call__(self, prompts: list, completion_ids: list[list[int]], **kwargs) -> list[float]:
        means = self.original_log_likelihood(prompts, completion_ids)
        # NaN, for an answer without tokens, is not above noise
        return [
            min(0.0, (mean - self.fluent) / (self.fluent - self.noise)) if mean > self.noise else -1.0
            for mean in means
        ]
