"""All attacks on one model: each with what it needs, or with the reason why it cannot be run."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
from trl import ModelConfig

from eval.attacks.options import options_attack
from eval.attacks.quantization import load_quantized, quantization_attack
from eval.attacks.relearning import Relearner, relearning_attack
from eval.attacks.sampling import prefilling_attack, rewording_attack, sampling_attack, sampling_settings
from eval.attacks.token_shift import chunked, token_shift_attack
from eval.columns import Outputs
from eval.metrics.intervals import not_available
from eval.passes import ModelPasses
from eval.sets import AuditData, QuestionSet
from pmc_rl.adapters import make_peft_config
from pmc_rl.config import Attack, EvalArguments, PMCConfig
from pmc_rl.likelihood import Row
from pmc_rl.models import is_quantized, load_merged, training_dtype
from pmc_rl.prompts import encode_answers

ATTACKS = get_args(Attack)


@dataclass
class Attacks:
    """The attacks of a recipe, ready for model after model: its data, the model before unlearning, with which others
    are compared, the recipe's own arguments, and a private folder for temporary files."""

    data: AuditData
    before: ModelPasses
    training_args: PMCConfig
    model_args: ModelConfig
    eval_args: EvalArguments
    folder: Path

    def run(self, passes: ModelPasses, model_args: ModelConfig, said: Outputs) -> dict:
        """The results of every attack on one model, given its own arguments and answers; if it cannot be run, why."""
        if "forget" not in self.data.questions:
            return {name: not_available("there is no question set forget, see what was left out") for name in ATTACKS}
        forget, args = self.data.questions["forget"], self.eval_args
        count, settings = args.attack_samples, sampling_settings(self.training_args)
        attacks = {
            "sampling": lambda: sampling_attack(passes, forget, count, settings),
            "prefilling": lambda: prefilling_attack(passes, forget, count, args.prefixes, args.first_words),
            "rewording": lambda: rewording_attack(passes, forget, count, args.wordings),
            "options": lambda: self._options(said),
            "token_shift": lambda: self._token_shift(passes),
            "relearning": lambda: self._relearning(passes, model_args),
            "quantization": lambda: self._quantization(passes, model_args),
        }
        return {
            name: attack() if name in args.attacks else not_available("attacks does not name it")
            for name, attack in attacks.items()
        }

    def _options(self, said: Outputs) -> dict:
        if "forget" in self.data.missing:
            return not_available(self.data.missing["forget"])
        scored = said.scored["forget"]
        if scored.wrong is None:
            return not_available("the forget rows have no wrong answers (column perturbed_answer)")
        # the answers are memorised word for word; a paraphrase meets the wrong answers on equal terms
        right = scored.paraphrases or scored.answers
        wrong_options = min(map(len, scored.wrong))
        losses = [
            [answer.loss, *(option.loss for option in wrong[:wrong_options])]
            for answer, wrong in zip(right, scored.wrong, strict=True)
        ]
        return options_attack(np.array(losses))

    def _token_shift(self, passes: ModelPasses) -> dict:
        if self.data.unrelated_text is None:
            return not_available("there is no unrelated text; give a text file with unrelated_file")
        texts = [self.data.unrelated_text, " ".join(self.data.questions["forget"].answers)]
        ids, forget_tokens = (self.before.tokenizer(text)["input_ids"] for text in texts)
        if [passes.tokenizer(text)["input_ids"] for text in texts] != [ids, forget_tokens]:
            return not_available("its tokenizer is not that of the model before")
        chunks = chunked(ids)
        if not chunks:
            return not_available("the unrelated text is too short")
        # of the model before, in its own turn, while it is loaded; later from the cache
        before = self.before.score_text(chunks, "unrelated text")
        if passes is self.before:
            return not_available("it is what the others are compared with")
        return token_shift_attack(chunks, forget_tokens, before, passes.score_text(chunks, "unrelated text"))

    def _relearning(self, passes: ModelPasses, model_args: ModelConfig) -> dict:
        if passes is self.before:
            return not_available("it has not been unlearned")
        forget = self.data.questions["forget"]
        half = len(forget.questions) // 2
        if half == 0:
            return not_available("one forget row cannot be halved")
        # in file order, so that of rows grouped by author no author is on both sides
        learned, rest = forget.part(0, half), forget.part(half, len(forget.questions))
        runs = {"half of the forget rows": (self._encoded(passes, learned), rest)}
        if "retain" in self.data.questions:
            runs["retain rows"] = (self._encoded(passes, self.data.questions["retain"]), forget)
        if self.data.unrelated_text is not None:
            chunks = chunked(passes.tokenizer(self.data.unrelated_text)["input_ids"])
            runs["unrelated text"] = ([(ids[:1], ids[1:]) for ids in chunks], forget)
        return {
            what: relearning_attack(passes, self.before, scored, self._relearner(passes, model_args, learned), what)
            for what, (learned, scored) in runs.items()
            if learned
        }

    def _encoded(self, passes: ModelPasses, rows: QuestionSet) -> list[Row]:
        return encode_answers(passes.script_args, passes.tokenizer, rows.questions, rows.answers, passes.end_ids)

    def _relearner(self, passes: ModelPasses, model_args: ModelConfig, rows: list[Row]) -> Relearner:
        args, dtype = self.training_args, training_dtype(self.model_args, self.training_args)
        return Relearner(
            load=lambda: load_merged(model_args, dtype, args.device),
            rows=rows,
            steps=self.eval_args.relearning_steps,
            learning_rate=self.eval_args.relearning_learning_rate or args.learning_rate,
            peft_config=make_peft_config(self.model_args),
            args=args,
        )

    def _quantization(self, passes: ModelPasses, model_args: ModelConfig) -> dict:
        if passes is self.before:
            return not_available("it has not been unlearned")
        if find_spec("bitsandbytes") is None:
            return not_available("the package bitsandbytes is not installed; pip install -e '.[quantization]'")
        if is_quantized(model_args):
            return not_available("not applicable: the model was trained quantized")
        args, dtype = self.training_args, training_dtype(self.model_args, self.training_args)
        return quantization_attack(
            passes,
            self.before,
            self.data.questions["forget"],
            lambda bits: load_quantized(model_args, bits, dtype, args.device, self.folder),
        )
