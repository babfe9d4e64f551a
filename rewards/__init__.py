"""
Rewards for collapse training, one file a family: plain functions in the contract of TRL's GRPOTrainer.

A reward is called by keyword, with lists that have one entry a completion:

- `completions`, `prompts`: texts, or conversations of a chat model ([`rewards.text.Texts`]);
- `completion_ids`: the sampled token ids, end token included, without padding;
- `original_completion`: what the model answered before unlearning, never the truth; with TRL's trainer a data column;
- `pmc_id`: the number of the question, and every other column of the data.

It takes `**kwargs` for what it does not use and returns one float a completion, higher is better: a reward lies in
[0, 1], a penalty in [-1, 0]. Its other parameters are settings, given by a recipe's `reward_kwargs` or by
`functools.partial`; a wrong one is a `ValueError`. A class takes them when it is built; its instance is the reward.

Two plain attributes tell the trainer when a question is solved: `max_reward`, the largest value there can be, and
`stationary`, False where the same text may get another value later.

Where a docstring names no other source, the reward comes from this project. Examples run: `python -m doctest FILE`.
"""
