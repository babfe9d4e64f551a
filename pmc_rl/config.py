"""The keys of a recipe: a dataclass field each, with its default and help. What may stand in them: recipe.py."""

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from trl import SFTConfig

# TRL and peft use names that transformers calls deprecated; nobody here can act on it.
warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing` is deprecated", category=FutureWarning)


def setting(default: Any, help: str) -> Any:
    """A field with a help text; every instance gets its own copy of a list or dict."""
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class DataArguments:
    """Keys of both training stages: columns and templates."""

    tokenizer_name_or_path: str | None = setting(None, "Tokenizer; null: the model's own.")
    dataset_name: str | None = setting(None, "Name on the Hub, or a folder in the Hub's layout.")
    question_column: str = setting("question", "Column with the questions.")
    answer_column: str | None = setting(
        "answer", "Column with the answers; null, for unlearning: the model before it answers."
    )
    prompt_template: str | None = setting(
        None, "Text around {question}; null: the tokenizer's chat template, or 'Question: {question}\\nAnswer:'."
    )
    completion_template: str = setting(" {answer}", "Text around {answer}, where prompts are text.")
    system_prompt: str | None = setting(None, "System message, where prompts go through a chat template.")
    chat_template_kwargs: dict[str, Any] | None = setting(None, "Variables of the chat template, such as date_string.")
    # What the recipe and the command line gave, as run; not a key.
    given: dict[str, Any] = field(default_factory=dict, init=False, repr=False)


@dataclass
class PMCArguments(DataArguments):
    """Keys of unlearning: what to forget, what to retain, which rewards."""

    forget_config: str | list[str] | None = setting(
        None, "Config of dataset_name with the questions to forget, or several."
    )
    forget_split: str | list[str] = setting("train", "Split of forget_config, or several.")
    forget_file: str | list[str] | None = setting(
        None, "File with the questions to forget, or several, in place of forget_config."
    )
    retain_config: str | list[str] | None = setting(
        None, "Config of dataset_name with the rows to retain, or several."
    )
    retain_split: str | list[str] = setting("train", "Split of retain_config, or several.")
    retain_file: str | list[str] | None = setting(
        None, "File with the rows to retain, or several, in place of retain_config."
    )
    retain_question_column: str | None = setting(None, "Column with the questions to retain; null: question_column.")
    retain_answer_column: str | None = setting(None, "Column with their answers; null: answer_column.")
    retain_holdout: float = setting(0.0, "Share of the retain rows kept out of training, for the audit.")
    reward_columns: list[str] = setting([], "Further columns of the forget rows that a reward may see.")
    reward_funcs: list[str] = setting(
        [
            "rewards.rouge.rouge_dissimilarity",
            "rewards.length.min_length_penalty",
            "rewards.length.unfinished_penalty",
        ],
        "Rewards by dotted name, or reward models by folder or Hub name; their weighted sum ranks the samples.",
    )
    reward_kwargs: dict[str, dict[str, Any]] = setting({}, "Keyword arguments of rewards: {name: {keyword: value}}.")
    reward_floors: dict[str, float] = setting(
        {}, "Least value of a reward: a sample below it is not picked while another one of the question passes."
    )


@dataclass
class FinetuneArguments(DataArguments):
    """Keys of fine-tuning, which makes the memorizing or the retain-only model."""

    train_configs: list[str] = setting([], "Configs of dataset_name with the rows to learn.")
    train_split: str | list[str] = setting("train", "Split of train_configs, or several.")
    train_file: str | list[str] | None = setting(
        None, "File with the rows to learn, or several, in place of train_configs."
    )


@dataclass
class EvalArguments:
    """Keys of the audit; training only checks them."""

    eval_sets: (
        list[Literal["forget", "forget_paraphrased", "retain", "retain_holdout", "real_authors", "world_facts"]] | None
    ) = setting(None, "Question sets to audit; null: every set the data has.")
    retain_only_model: str | None = setting(
        None, "Run of finetune.py that never saw the forget rows, to compare with."
    )
    also: list[str] = setting([], "Further models to compare with, as NAME=FOLDER.")
    holdout_file: str | None = setting(
        None, "Questions and answers no model saw; null: dataset_name's holdout config."
    )
    attacks: list[Literal["sampling", "prefilling", "options", "token_shift", "relearning", "quantization"]] = setting(
        ["sampling", "prefilling", "options", "token_shift", "relearning", "quantization"], "Attacks to run."
    )
    attack_samples: int = setting(100, "Answers a question that the sampling and prefilling attacks draw.")
    prefixes: list[str] = setting(["The answer is:"], "Beginnings that the prefilling attack forces on an answer.")
    first_words: int = setting(
        1, "Words (in scripts without spaces, characters) of the true answer given away in a further run; 0: none."
    )
    unrelated_file: str | None = setting(
        None, "Text that has nothing to do with the forget rows, for token_shift; null: real_authors, world_facts."
    )
    relearning_steps: int = setting(16, "Optimizer steps of the relearning attack.")
    relearning_learning_rate: float | None = setting(None, "Learning rate of that attack; null: learning_rate.")
    lm_eval_tasks: list[str] = setting([], "Tasks of lm-evaluation-harness, by name or by the path of a YAML file.")
    with_texts: bool = setting(False, "Write a second report with the worst leaking questions into private/.")


@dataclass
class RunConfig(SFTConfig):
    """TRL's SFTConfig with what both training stages change."""

    overwrite: bool = setting(False, "Replace the run that output_dir holds.")
    # Logged tables show what is to be forgotten, so nothing is sent anywhere unasked.
    report_to: None | str | list[str] = setting("none", "Services to log to.")
    save_strategy: Literal["no", "steps"] = setting("no", "Checkpoints: none but at a signal, or every save_steps.")
    save_total_limit: int = setting(2, "Checkpoints kept; the one before the last stays until the last is complete.")

    def __post_init__(self):
        if self.use_cpu or not torch.accelerator.is_available():
            # TRL turns bf16 on by default, then raises where there is no accelerator.
            self.use_cpu, self.bf16, self.fp16 = True, False, False
        super().__post_init__()


@dataclass
class PMCConfig(RunConfig):
    """Keys of sampling, selection and the unlearning loss."""

    num_generations: int = setting(5, "Samples a question, of which the best is learned.")
    temperature: float = setting(1.0, "Sampling temperature.")
    top_p: float = setting(0.95, "Probability mass that is sampled from; 1: all.")
    top_k: int = setting(0, "Number of tokens that are sampled from; 0: all.")
    max_completion_length: int = setting(160, "Longest answer that is generated, in tokens.")
    generation_batch_size: int | Literal["auto"] = setting(
        64, "Rows generated at once, halved where memory is short; auto: by free memory, 64 in the audit."
    )
    reward_weights: list[float] | None = setting(None, "A weight for each of reward_funcs; null: 1 each.")
    max_reward: float | None = setting(None, "Where a question is solved; needed if a reward declares no max_reward.")
    normalize_rewards: bool = setting(False, "Scale each reward to mean 0, deviation 1 within a question's samples.")
    selection: Literal["best", "bradley_terry"] = setting(
        "best", "Keep the best answer so far, or draw one of the samples by softmax(reward / selection_temperature)."
    )
    selection_temperature: float = setting(
        0.1, "Temperature of bradley_terry (tau in the paper); towards 0: the best."
    )
    num_selected: int = setting(1, "Answers a question that are learned in one step.")
    adaptive_generations: bool = setting(
        False, "Share num_generations out: fewer samples for questions that improve, more for those that are stuck."
    )
    retain_weight: float = setting(1.0, "Weight of the retain loss (lambda in the paper).")
    prefill_words: int = setting(
        0, "Also collapse what follows the first 1 to N words (or characters, see first_words) of each answer; 0: no."
    )
    log_kl: bool = setting(False, "Log the KL divergence to the model before; without use_peft keeps a copy of it.")
    resume_from_checkpoint: Literal["auto"] | None = setting(
        None, "auto: go on from the last checkpoint in output_dir, or begin where there is none."
    )
    keep_checkpoints: bool = setting(
        False, "Keep the checkpoints of a finished run; they hold what is to be forgotten."
    )
    save_merged: bool = setting(
        False, "With use_peft also save the merged model, to merged/; another model: audit it."
    )
    dry_run: bool = setting(
        False,
        "Load no weights, write nothing: print steps, samples and estimated memory; of an audit, the rows it takes.",
    )
    snapshot_steps: int | None = setting(
        None, "Save the weights to snapshots/ every so many steps, to audit the course."
    )
    allow_unfinished: bool = setting(False, "Go on if over half of the original answers hit max_completion_length.")
    log_completions: bool = setting(False, "Print a table of question, original, selected and reward at every log.")
    num_completions_to_print: int = setting(4, "Rows of that table.")


@dataclass
class FinetuneConfig(RunConfig):
    """Nothing beyond [`RunConfig`]; a class of its own, so that recipes with keys of unlearning are refused."""
