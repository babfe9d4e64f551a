"""FluencyPenalty by hand; that pmc_rl tells it the model before unlearning: tests/pmc_rl/test_original.py."""

import pytest

from rewards.fluency import FluencyPenalty


def test_fluency_penalty_by_hand():
    means = [-0.2, -1.0, -2.5, -4.0, -9.0, float("nan")]
    penalty = FluencyPenalty(lambda prompts, completion_ids: means)
    assert penalty(prompts=[""] * 6, completion_ids=[[1]] * 6) == [0.0, 0.0, -0.5, -1.0, -1.0, -1.0]
    with pytest.raises(ValueError, match="noise is -1, but it must be less than fluent, which is -1"):
        FluencyPenalty(lambda prompts, completion_ids: [], fluent=-1, noise=-1)
