"""The model before unlearning: its answers to the questions to forget, and to the rows to retain that have none."""

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pmc_rl.config import PMCArguments, PMCConfig
from pmc_rl.errors import RecipeError
from pmc_rl.generation import decode_completion, end_token_ids, generate_together
from pmc_rl.prompts import encode_prompt, format_prompt, prefilled_rows


def with_original_answers(
    dataset: Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: PMCConfig,
    answer_start: str = " ",
    saved: list[str] | None = None,
) -> Dataset:
    """
    Forget prompts as [`~pmc_rl.trainer.PMCTrainer`] takes them: with the `original_completion` of each, which the
    rewards compare with, and with `prefill_words` the begun answers as prompts of their own.

    Args:
        dataset ([`~datasets.Dataset`]): `prompt`, `pmc_id` (unique), and any columns the rewards want.
        model ([`~transformers.PreTrainedModel`]): before any step. Where the data has no `original_completion`, its
            greedy answers are taken; never the ground truth.
        answer_start (`str`): what stands between a text prompt and its answer; for `prefill_words`.
        saved (`list[str]`, *optional*): the original answers of a checkpoint, in place of those of `model`.

    Raises:
        RecipeError: if over half of the answers had to be cut, unless `allow_unfinished`.
    """
    if "original_completion" not in dataset.column_names:
        texts = _greedy_answers(dataset, model, tokenizer, args) if saved is None else saved[: len(dataset)]
        dataset = dataset.add_column("original_completion", texts)
    if args.prefill_words:
        dataset = Dataset.from_list(prefilled_rows(list(dataset), args.prefill_words, answer_start))
    return dataset


def _greedy_answers(
    dataset: Dataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: PMCConfig
) -> list[str]:
    prompt_ids = [encode_prompt(tokenizer, row) for row in dataset]
    answers = _answer_prompts(prompt_ids, model, tokenizer, args, "original answers")
    clipped = sum(not ended for _, ended in answers)
    if clipped > len(answers) / 2 and not args.allow_unfinished:
        raise RecipeError(
            [
                f"{clipped} of {len(answers)} original answers hit max_completion_length = "
                f"{args.max_completion_length}: the limit is too small, the prompt template or the end token "
                "is not the one the model was trained with, or the model does not end its answers "
                "(--allow_unfinished true goes on all the same)"
            ]
        )
    return [text for text, _ in answers]


def _answer_prompts(
    prompt_ids: list[list[int]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: PMCConfig,
    progress: str,
) -> list[tuple[str, bool]]:
    """The model's greedy answer to each prompt, in the precision of the run, and whether it ended by itself."""
    end_ids = end_token_ids(model.generation_config, tokenizer.eos_token_id)
    completions = generate_together(model, prompt_ids, args, end_ids, progress=progress)
    return [(decode_completion(tokenizer, ids), ids[-1] in end_ids) for ids in completions]


def answer_retain_rows(
    args: PMCArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    training_args: PMCConfig,
) -> list[dict]:
    """
    Rows with, for those without an answer, the model's own greedy one before unlearning: what it says is to be kept.

    Answers that are empty or cut at the limit would teach the model to say nothing or to stop anywhere: left out.
    """
    column = args.answer_column or "answer"
    missing = [i for i, row in enumerate(rows) if row.get(column) is None]
    if not missing:
        return rows
    prompts = [format_prompt(args, tokenizer, rows[i][args.question_column]) for i in missing]
    prompt_ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    own = _answer_prompts(prompt_ids, model, tokenizer, training_args, "answers of retain rows that have none")
    answers = {i: text if ended else None for i, (text, ended) in zip(missing, own, strict=True)}
    answered = [
        {**row, column: answers[i]} if i in answers else row for i, row in enumerate(rows) if answers.get(i, column)
    ]
    PartialState().print(
        f"{len(missing)} retain rows had no answer and got the model's own; "
        f"{len(rows) - len(answered)} of them left out: empty, or cut at max_completion_length."
    )
    if not answered:
        raise RecipeError(["no retain row is left; raise max_completion_length or give answers"])
    return answered
