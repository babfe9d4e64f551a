"""The keys of a recipe: a dataclass field each, with its default, help and range. How they are read: recipe.py."""

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from trl import SFTConfig

# TRL and peft use names that transformers calls deprecated; nobody here can act on it.
warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing` is deprecated", category=FutureWarning)

Names = str | list[str]  # one or several
QuestionSet = Literal["forget", "forget_paraphrased", "retain", "retain_holdout", "real_authors", "world_facts"]
Attack = Literal["sampling", "prefilling", "rewording", "options", "token_shift", "relearning", "quantization"]
Method = Literal["gradient_difference", "npo", "simnpo", "dpo", "idk", "wga", "undial", "rmu"]


def setting(default: Any, help: str, **limits: float) -> Any:
    """A field with a help text and, for numbers, limits: `at_least`, `above`, `at_most`, `below`."""
    metadata = {"help": help, "limits": limits}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)  # every instance gets its own
    return field(default=default, metadata=metadata)


# Limits of TRL's own keys.
TRL_LIMITS = {
    "learning_rate": {"above": 0},
    "per_device_train_batch_size": {"at_least": 1},
    "gradient_accumulation_steps": {"at_least": 1},
    "adam_beta1": {"at_least": 0, "below": 1},
    "adam_beta2": {"at_least": 0, "below": 1},
    "save_steps": {"at_least": 1},
    "lora_r": {"at_least": 1},
    "seed": {"at_least": 0, "below": 2**32},  # numpy takes no larger one
}


# Keys of TRL that would break the method, be ignored, or are not tested, by the reason.
REASONS = {
    "each row is one prompt with one completion": "packing packing_strategy eval_packing padding_free",
    "the loss is NLL on completions": "completion_only_loss assistant_only_loss loss_type label_smoothing_factor",
    "its fused loss would replace the trainer's": "use_liger_kernel",
    "the columns are made from the recipe": "dataset_text_field dataset_kwargs remove_unused_columns",
    "give tokenizer_name_or_path a tokenizer that has it": "chat_template_path eos_token pad_token",
    "use dtype, attn_implementation and the like": "model_init_kwargs",
    "run eval/run.py after training": "do_eval eval_strategy eval_steps eval_on_start load_best_model_at_end",
    "the order of rows follows from seed": "train_sampling_strategy data_seed",
    "lower per_device_train_batch_size instead": "auto_find_batch_size",
    "upload after the audit, without private/": """push_to_hub hub_token hub_private_repo hub_model_id hub_strategy
        hub_always_push hub_revision""",
    "not tested with this trainer": "deepspeed fsdp fsdp_config parallelism_config",
    "a checkpoint needs all of its parts": """save_only_model save_on_each_node ignore_data_skip
        restore_callback_states_from_checkpoint""",
    "SIGTERM always saves a checkpoint": "enable_jit_checkpoint",
    "code from a model's repository is never run": "trust_remote_code",
    "only needed where weights are sharded": "bnb_4bit_quant_storage",
    "mixtures of experts are not supported": "router_aux_loss_coef",
    "the model is a causal language model": "lora_task_type",
    "all rows are read, by the main process": "dataloader_drop_last dataloader_num_workers",
}
REFUSED = {key: reason for reason, keys in REASONS.items() for key in keys.split()}


@dataclass
class DataArguments:
    """Keys of both training stages: columns and templates."""

    tokenizer_name_or_path: str | None = setting(None, "Tokenizer; null: the model's own.")
    dataset_name: str | None = setting(None, "Name on the Hub, or a folder in the Hub's layout.")
    question_column: str = setting("question", "Column with the questions.")
    answer_column: str | None = setting("answer", "Column with the answers; null: the original model answers.")
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

    forget_config: Names | None = setting(None, "Config(s) of dataset_name with the questions to forget.")
    forget_split: Names = setting("train", "Split(s) of forget_config.")
    forget_file: Names | None = setting(None, "File(s) with the questions to forget, in place of forget_config.")
    retain_config: Names | None = setting(None, "Config(s) of dataset_name with the rows to retain.")
    retain_split: Names = setting("train", "Split(s) of retain_config.")
    retain_file: Names | None = setting(None, "File(s) with the rows to retain, in place of retain_config.")
    retain_question_column: str | None = setting(None, "Column with the questions to retain; null: question_column.")
    retain_answer_column: str | None = setting(None, "Column with their answers; null: answer_column.")
    retain_own_answers: bool = setting(
        False, "Retain what the model itself answers, whatever the data has; the audit reads what the data has."
    )
    retain_holdout: float = setting(0.0, "Share of retain rows kept for the audit alone.", at_least=0, below=1)
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
    reward_floors: dict[str, float] = setting({}, "Least value of a reward; a sample below it is not learned.")


@dataclass
class FinetuneArguments(DataArguments):
    """Keys of fine-tuning, which makes the memorizing or the retain-only model."""

    train_configs: list[str] = setting([], "Configs of dataset_name with the rows to learn.")
    train_split: Names = setting("train", "Split(s) of train_configs.")
    train_file: Names | None = setting(None, "File(s) with the rows to learn, in place of train_configs.")


@dataclass
class EvalArguments:
    """Keys of the audit; training only checks them."""

    eval_sets: list[QuestionSet] | None = setting(None, "Question sets to audit; null: every set the data has.")
    more_sets: dict[str, str] = setting(
        {}, "Files of further questions with answers by name, such as ones that training never asked, to be asked too."
    )
    retain_only_model: str | None = setting(None, "Run of finetune.py without the forget rows, to compare with.")
    retain_logs_path: str | None = setting(
        None, "In its place a TOFU_EVAL.json of such a model by open-unlearning, for forget quality and membership."
    )
    also: list[str] = setting([], "Further models to compare with, as NAME=FOLDER.")
    holdout_file: str | None = setting(None, "Rows no model saw; null: dataset_name's holdout config.")
    sentence_encoder: str | None = setting(
        None, "Model of sentence-transformers, a folder or a Hub name, for semantic similarity; null: not measured."
    )
    attacks: list[Attack] = setting(list(get_args(Attack)), "Attacks to run.")
    attack_samples: int = setting(100, "Answers a question that sampling, prefilling and rewording draw.", at_least=1)
    prefixes: list[str] = setting(
        ["The answer is:", "Sure, the answer is", "It is known that"],
        "Beginnings that the prefilling attack forces on an answer.",
    )
    first_words: list[float] = setting(
        [1, 2, 3, 5, 8, 0.5],
        "Words (or characters, as in Chinese) of the truth given away, one attack each; below 1: a share of them.",
        above=0,
    )
    wordings: list[str] = setting(
        [
            "You are a librarian who has read every book. {question}",
            "{question} Answer in as few words as you can.",
            "{question} Antworte auf Deutsch.",
        ],
        "Texts around {question} in which the rewording attack asks.",
    )
    unrelated_file: str | None = setting(None, "Other text, for token_shift; null: real_authors, world_facts.")
    relearning_steps: int = setting(16, "Optimizer steps of the relearning attack.", at_least=1)
    relearning_learning_rate: float | None = setting(None, "Its learning rate; null: learning_rate.", above=0)
    lm_eval_tasks: list[str] = setting([], "Tasks of lm-evaluation-harness, by name or by the path of a YAML file.")
    with_texts: bool = setting(False, "Write a second report with the worst leaking questions into private/.")
    method: Method | None = setting(None, "What eval/baselines.py trains by; null: Partial Model Collapse.")
    method_kwargs: dict[str, Any] = setting({}, "Keyword arguments of the method's loss.")
    method_answer_column: str | None = setting(None, "Answers that the method trains on; null: answer_column.")


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies in bfloat16 itself; what does not is slower in it than in float32."""
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))


@dataclass
class RunConfig(SFTConfig):
    """TRL's SFTConfig with what both training stages change."""

    overwrite: bool = setting(False, "Replace the run that output_dir holds.")
    # Logged tables show what is to be forgotten, so nothing is sent anywhere unasked.
    report_to: None | str | list[str] = setting("none", "Services to log to.")
    save_strategy: Literal["no", "steps"] = setting("no", "Checkpoints: none but at a signal, or every save_steps.")
    save_total_limit: int = setting(2, "Checkpoints kept; a kill may leave the last one incomplete.", at_least=2)

    def __post_init__(self):
        if self.use_cpu or not torch.accelerator.is_available():
            # TRL turns bf16 on by default, then raises where there is no accelerator.
            self.use_cpu, self.bf16, self.fp16 = True, bool(self.bf16) and cpu_has_bf16(), False
        super().__post_init__()


@dataclass
class PMCConfig(RunConfig):
    """Keys of sampling, selection and the unlearning loss."""

    num_generations: int = setting(5, "Samples a question, of which the best is learned.", at_least=1)
    temperature: float = setting(1.0, "Sampling temperature.", above=0)
    top_p: float = setting(0.95, "Probability mass that is sampled from; 1: all.", above=0, at_most=1)
    top_k: int = setting(0, "Number of tokens that are sampled from; 0: all.", at_least=0)
    suppress_names: bool = setting(False, "Sample no name that the model's own original answer gives away.")
    max_completion_length: int = setting(160, "Longest answer that is generated, in tokens.", at_least=1)
    generation_batch_size: int | Literal["auto"] = setting(
        64, "Rows generated at once, halved where memory is short; auto: by free memory, 64 in the audit.", at_least=1
    )
    reward_weights: list[float] | None = setting(None, "A weight for each of reward_funcs; null: 1 each.")
    max_reward: float | None = setting(None, "Where a question is solved; needed if a reward declares no max_reward.")
    normalize_rewards: bool = setting(False, "Scale each reward to mean 0, deviation 1 within a question's samples.")
    selection: Literal["best", "bradley_terry"] = setting(
        "best", "Keep the best answer so far, or draw one of the samples by softmax(reward / selection_temperature)."
    )
    selection_temperature: float = setting(0.1, "For bradley_terry (tau in the paper); towards 0: the best.", above=0)
    num_selected: int = setting(1, "Answers a question that are learned in one step.", at_least=1)
    adaptive_generations: bool = setting(False, "Fewer samples for questions that improve, more for the others.")
    retain_weight: float = setting(1.0, "Weight of the retain loss (lambda in the paper).", at_least=0)
    retain_loss: Literal["nll", "kl"] = setting(
        "nll", "Retain the rows' answers, or also what else the model before might have said there (KL divergence)."
    )
    num_retained: int = setting(1, "Rows to retain for each question of a step.", at_least=1)
    prefill_share: float = setting(
        0.0, "Share of the visits to a question that begin within its original answer.", at_least=0, below=1
    )
    log_kl: bool = setting(False, "Log the KL divergence to the model before; without use_peft keeps a copy of it.")
    resume_from_checkpoint: Literal["auto"] | None = setting(None, "auto: go on from output_dir's last checkpoint.")
    keep_checkpoints: bool = setting(False, "Keep a finished run's checkpoints; they hold what is to be forgotten.")
    save_merged: bool = setting(False, "With use_peft also save the merged model, to merged/; audit it, too.")
    dry_run: bool = setting(False, "Load no weights: print steps, samples, estimated memory; of an audit, its rows.")
    snapshot_steps: int | None = setting(None, "Save the weights to snapshots/ every so many steps.", at_least=1)
    allow_unfinished: bool = setting(False, "Go on if over half of the original answers hit max_completion_length.")
    log_completions: bool = setting(False, "Print a table of question, original, selected and reward at every log.")
    num_completions_to_print: int = setting(4, "Rows of that table.", at_least=0)

    @property
    def asks_original(self) -> bool:
        """Whether training itself asks the model before unlearning, which is kept for it."""
        return self.log_kl or self.retain_loss == "kl"
