"""Fluency: answers that the model before unlearning would call language, by their likelihood under it."""

from collections.abc import Callable


class FluencyPenalty:
    """
    Penalty for answers that the model before unlearning finds unlikely, so that a collapse ends in phrases.

        r = -min(1, max(0, (fluent - l) / (fluent - noise))),  in [-1, 0]

    l is the mean log-probability a token (nats, end token included) under the model before unlearning. From `fluent`
    on an answer costs nothing (the likeliest one is the original, which is not wanted); at and below `noise`, or
    without tokens, it costs 1. `original_log_likelihood` takes prompts and completion ids and returns l of each
    completion: pmc_rl gives it; for TRL's trainer write one that asks a frozen copy of the model.

    Source: the guidance that the paper of Partial Model Collapse names as future work.

    >>> penalty = FluencyPenalty(lambda prompts, completion_ids: [-0.4, -2.5, -9.0])
    >>> penalty(prompts=["?"] * 3, completion_ids=[[1], [2], [3]])
    [0.0, -0.5, -1.0]
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
