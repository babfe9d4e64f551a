"""Breaks the method in one place after another and runs the tests that have to notice; exit code 1 if none does.

python tests/mutations.py [WORD]     all, in some minutes, or those with this word in their name
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]

# Name; file and the tests to run; what stands there, exactly once; what takes its place.
MUTATIONS = """
the worst sample is picked
pmc_rl/selection.py tests/pmc_rl/test_selection.py
- np.argsort(-np.where(
+ np.argsort(np.where(

the pool keeps the worst
pmc_rl/selection.py tests/pmc_rl/test_rejection.py
- key=lambda answer: answer.reward, reverse=True
+ key=lambda answer: answer.reward

one sample too few a question
pmc_rl/rejection.py tests/pmc_rl/test_rejection.py
- counts = [args.num_generations] *
+ counts = [args.num_generations - 1] *

solved questions are sampled again
pmc_rl/rejection.py tests/pmc_rl/test_rejection.py
- unsolved = [row for row in rows if not self.is_solved(row["pmc_id"])]
+ unsolved = list(rows)

the gate counts what did not pass
pmc_rl/rejection.py tests/pmc_rl/test_rejection.py
- [tuple(ids[i])] if passes else []
+ [tuple(ids[i])]

what does not pass the gate is learned
pmc_rl/selection.py tests/pmc_rl/test_selection.py
- (scored & passed).sum(1)
+ scored.sum(1)

names are suppressed in the samples of another question
pmc_rl/generation.py tests/pmc_rl/test_generation.py::test_suppressed_tokens_go_with_their_rows
- [sampling.suppressed[row] for row in rows]
+ sampling.suppressed[: len(rows)]

equal samples in each step
pmc_rl/generation.py tests/pmc_rl/test_generation.py::test_seeds_are_prompt_major_and_independent_of_other_rows
- {seed}/{step}/{row}/{i}
+ {seed}/{row}/{i}

the retain weight counts twice
pmc_rl/trainer.py tests/pmc_rl/test_trainer.py::test_one_step_equals_plain_torch
- retain_weight = self.args.retain_weight /
+ retain_weight = 2 * self.args.retain_weight /

the end token is not learned
pmc_rl/trainer.py tests/pmc_rl/test_trainer.py::test_one_step_equals_plain_torch
- [-100] * len(prompt_ids) + completion_ids
+ [-100] * len(prompt_ids) + completion_ids[:-1] + [-100]

prompts are learned
pmc_rl/trainer.py tests/pmc_rl/test_trainer.py::test_one_step_equals_plain_torch
- [-100] * len(prompt_ids) + completion_ids
+ prompt_ids + completion_ids

rewards compare with something else than the original answer
pmc_rl/original.py tests/pmc_rl/test_original.py::test_original_answers_are_the_models_greedy_ones_unless_given
- return [text for text, _ in answers]
+ return [row["prompt"] for row in dataset]

what follows the first words is compared with the whole original answer
pmc_rl/prompts.py tests/pmc_rl/test_original.py::test_rows_that_begin_within_an_answer
- "original_completion": rest}
+ }

training reads the answers to forget
pmc_rl/data.py tests/pmc_rl/test_data.py::test_forget_rows_take_only_what_is_named
- [args.question_column, *args.reward_columns]
+ [args.question_column, "answer", *args.reward_columns]

the reward asks for the original answer
rewards/rouge.py tests/rewards/test_rouge.py::test_rouge_dissimilarity_by_hand
- [1 - recall for
+ [recall for

the audit takes precision for recall
eval/metrics/unlearning.py tests/eval/test_scripts.py::test_one_letter_of_another_script_decides
- rouge_l_recall(reference, prediction)
+ rouge_l_recall(prediction, reference)

a baseline compares with the model as it is now
eval/baselines.py tests/eval/test_baselines.py
- before = read(original, inputs)
+ before = read(model, inputs)
"""


def failed_tests(file: str, tests: list[str], old: str, new: str) -> str:
    """How many tests fail with `new` in place of `old`, and the first; or what is wrong, beginning with "!"."""
    text = (REPO / file).read_text(encoding="utf-8")
    if text.count(old) != 1:
        return f"! not exactly once in {file}: {old}"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(REPO, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs"))
        (copy / file).write_text(text.replace(old, new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rf", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"PYTHONPATH": str(copy)}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return "! survived"
    failed = re.findall(r"(?m)^FAILED \S*::(\w+)", done.stdout)
    return f"{len(failed)}: {failed[0]}" if failed else f"! no test ran: {(done.stdout + done.stderr)[-300:]}"


def main() -> int:
    word, wrong = " ".join(sys.argv[1:]), 0
    for mutation in MUTATIONS.strip().split("\n\n"):
        name, where, old, new = mutation.splitlines()
        if word in name:
            file, *tests = where.split()
            result = failed_tests(file, tests, old.removeprefix("- "), new.removeprefix("+ "))
            print(f"{name:62} {result}", flush=True)
            wrong += result.startswith("!")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
