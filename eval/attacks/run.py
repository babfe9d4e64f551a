"""All attacks on one model: each with what it needs, or with the reason why it cannot be run."""

from pathlib import Path

import numpy as np
from transformers import PreTrainedModel
from trl import ModelConfig

from eval.attacks.options import options_attack
from eval.attacks.quantization import load_quantized, quantization_attack, why_not
from eval.attacks.relearning import Relearner, relearning_attack
from eval.attacks.sampling import prefilling_attack, sampling_attack, sampling_settings
from eval.attacks.token_shift import chunked, token_shift_attack
from eval.columns import Outputs
from eval.data import AuditData, QuestionSet
from eval.metrics.intervals import not_available
from eval.passes import ModelPasses
from pmc_rl.adapters import make_peft_config
from pmc_rl.config import EvalArguments, PMCConfig
from pmc_rl.models import load_merged, training_dtype
from pmc_rl.prompts import encode_answers

ATTACKS = ("sampling", "prefilling", "options", "token_shift", "relearning", "quantization")


class Attacks:
    """
    The attacks of a recipe, ready to be run on model after model.

    Args:
        data ([`~eval.data.AuditData`]): what the recipe's data holds.
        before ([`~eval.passes.ModelPasses`]): the model before unlearning, which changes are told against.
        training_args, model_args, eval_args: the recipe's own.
        folder (`Path`): a private folder for temporary files.
    """

    def __init__(
        self,
        data: AuditData,
        before: ModelPasses,
        training_args: PMCConfig,
        model_args: ModelConfig,
        eval_args: EvalArguments,
        folder: Path,
    ):
        self.data = data
        self.before = before
        self.training_args = training_args
        self.model_args = model_args
        self.eval_args = eval_args
        self.folder = folder

    def run(self, passes: ModelPasses, model_args: ModelConfig, said: Outputs) -> dict:
        """
        The results of every attack on one model; of those that cannot be run, why.

        Args:
            passes, model_args: the model's own, not the recipe's.
            said ([`~eval.columns.Outputs`]): what the model said so far.
        """
        if "forget" not in self.data.questions:
            return {name: not_available("there is no question set forget, see what was left out") for name in ATTACKS}
        forget = self.data.questions["forget"]
        count, prefixes = self.eval_args.attack_samples, self.eval_args.prefixes
        first_words = self.eval_args.first_words
        runs = {
            "sampling": lambda: sampling_attack(passes, forget, count, sampling_settings(self.training_args)),
            "prefilling": lambda: prefilling_attack(passes, forget, count, prefixes, first_words),
            "options": lambda: self._options(said),
            "token_shift": lambda: self._token_shift(passes),
            "relearning": lambda: self._relearning(passes, model_args),
            "quantization": lambda: self._quantization(passes, model_args),
        }
        asked = self.eval_args.attacks
        return {
            name: run() if name in asked else not_available("attacks does not name it") for name, run in runs.items()
        }

    def _options(self, said: Outputs) -> dict:
        if "forget" in self.data.missing:
            return not_available(self.data.missing["forget"])
        scored = said.scored["forget"]
        if scored.wrong is None:
            return not_available("the forget rows have no wrong answers (column perturbed_answer)")
        # the answers are memorised word for word; a paraphrase meets the wrong answers on equal terms
        right = scored.paraphrases or scored.answers
        options = min(len(wrong) for wrong in scored.wrong)
        losses = [
            [answer.loss, *(option.loss for option in wrong[:options])]
            for answer, wrong in zip(right, scored.wrong, strict=True)
        ]
        return options_attack(np.array(losses))

    def _token_shift(self, passes: ModelPasses) -> dict:
        if self.data.unrelated_text is None:
            return not_available("there is no unrelated text; give a text file with unrelated_file")
        text, answers = self.data.unrelated_text, " ".join(self.data.questions["forget"].answers)
        ids, own_ids = (
            (tokenizer(text)["input_ids"], tokenizer(answers)["input_ids"])
            for tokenizer in (self.before.tokenizer, passes.tokenizer)
        )
        if ids != own_ids:
            return not_available("its tokenizer is not that of the model before")
        chunks = chunked(ids[0])
        if not chunks:
            return not_available("the unrelated text is too short")
        # of the model before, in its own turn, while it is loaded; later from the cache
        before = self.before.score_text(chunks, "unrelated text")
        if passes is self.before:
            return not_available("it is what the others are compared with")
        after = passes.score_text(chunks, "unrelated text")
        return token_shift_attack(chunks, ids[1], before, after)

    def _relearning(self, passes: ModelPasses, model_args: ModelConfig) -> dict:
        if passes is self.before:
            return not_available("it has not been unlearned")
        forget = self.data.questions["forget"]
        half = len(forget.questions) // 2
        if half == 0:
            return not_available("one forget row cannot be halved")
        # in file order, so that of rows grouped by author no author is on both sides
        first, second = forget.part(0, half), forget.part(half, len(forget.questions))
        learned = {"half of the forget rows": (first, second)}
        if "retain" in self.data.questions:
            learned["retain rows"] = (self.data.questions["retain"], forget)
        return {
            what: relearning_attack(passes, self.before, scored, self._relearner(passes, model_args, rows), what)
            for what, (rows, scored) in learned.items()
        }

    def _relearner(self, passes: ModelPasses, model_args: ModelConfig, rows: QuestionSet) -> Relearner:
        args = self.training_args

        def load() -> PreTrainedModel:
            return load_merged(model_args, training_dtype(self.model_args, args), args.device)

        return Relearner(
            load,
            rows=encode_answers(passes.script_args, passes.tokenizer, rows.questions, rows.answers, passes.end_ids),
            steps=self.eval_args.relearning_steps,
            learning_rate=self.eval_args.relearning_learning_rate or args.learning_rate,
            peft_config=make_peft_config(self.model_args),
            args=args,
        )

    def _quantization(self, passes: ModelPasses, model_args: ModelConfig) -> dict:
        if passes is self.before:
            return not_available("it has not been unlearned")
        why = why_not(model_args)
        if why is not None:
            return not_available(why)
        args = self.training_args
        dtype = training_dtype(self.model_args, args)

        def load(bits: int) -> PreTrainedModel:
            return load_quantized(model_args, bits, dtype, args.device, self.folder)

        return quantization_attack(passes, self.before, self.data.questions["forget"], load)
