"""Where the time of a run goes, beside the naive schedule of the public PMC code: same samples, same weights after.

    python benchmarks/schedule.py RECIPE [--key value ...] [--steps N]

Makes the first N (default 20) optimizer steps of a recipe twice, each in a process of its own, and prints seconds,
tokens a second and peak memory of both. The naive schedule, written anew here, generates for one micro-batch at a time
in one plain call that lasts until its longest answer ends, reads each of the k copies of a prompt, scores
`rouge_dissimilarity` with rouge_score (other rewards as they are), and trains with one forward and backward pass for
the picked answers and one for the retain rows, padded to 200 tokens, with all logits. Seeds of samples, picks and loss
are ours, so the weights are equal up to rounding, which is printed as well. With dropout they are not. Both runs are
saved to a temporary folder only.
"""

import argparse
import io
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

from pmc_rl.errors import exit_on_recipe_error  # first: it switches telemetry off

# isort: split
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rouge_score.rouge_scorer import RougeScorer
from safetensors.torch import load_file
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessorList, TrainerCallback

from pmc_rl import rejection, train
from pmc_rl.config import PMCConfig
from pmc_rl.generation import InverseCDFSampler, Sampling, autocast
from pmc_rl.prompts import end_of_answer
from pmc_rl.scoring import RewardFunction
from pmc_rl.trainer import PMCTrainer
from rewards.rouge import rouge_dissimilarity
from rewards.text import completion_texts

STEPS = 20
PADDED_LENGTH = 200
SCORER = RougeScorer(["rougeL"], use_stemmer=True)


def rouge_score_dissimilarity(completions: list, original_completion: list, **kwargs) -> list[float]:
    """[`rewards.rouge.rouge_dissimilarity`] by rouge_score."""
    pairs = zip(completion_texts(original_completion), completion_texts(completions), strict=True)
    return [1 - SCORER.score(original, text)["rougeL"].recall for original, text in pairs]


@torch.no_grad()
def generate_plainly(
    model, prompt_ids: list[list[int]], args: PMCConfig, end_ids: list[int], sampling: Sampling
) -> list[list[int]]:
    """[`pmc_rl.generation.generate_together`] in one plain call."""
    length = max(map(len, prompt_ids))
    left = [length - len(ids) for ids in prompt_ids]
    input_ids = torch.tensor([[end_ids[0]] * n + ids for n, ids in zip(left, prompt_ids, strict=True)])
    attention_mask = torch.tensor([[0] * n + [1] * (length - n) for n in left])
    generators = [torch.Generator().manual_seed(seed) for seed in sampling.seeds]  # as in pmc_rl/generation.py
    uniforms = torch.stack([torch.rand(args.max_completion_length, generator=one) for one in generators])
    config = GenerationConfig(
        max_new_tokens=args.max_completion_length,
        do_sample=False,  # the processor leaves one token
        num_beams=1,
        use_cache=True,
        repetition_penalty=1.0,
        eos_token_id=end_ids,
        pad_token_id=end_ids[0],
    )
    model.eval()
    with autocast(model.device, args):
        output = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([InverseCDFSampler(uniforms.to(model.device), length, sampling)]),
        )
    model.train()
    return [ids[: end_of_answer(ids, 0, end_ids)] for ids in output[:, length:].tolist()]


class NaiveTrainer(PMCTrainer):
    """PMCTrainer as the public code would run it: the same method, nothing shared between micro-batches or rows."""

    def __init__(self, *, reward_funcs: list[RewardFunction], **kwargs):
        by_rouge_score = [
            replace(reward, func=rouge_score_dissimilarity) if reward.func is rouge_dissimilarity else reward
            for reward in reward_funcs
        ]
        super().__init__(reward_funcs=by_rouge_score, **kwargs)

    def select_completions(self, rows: list[dict]) -> list[list[list[int]]]:
        completions, size = [], self.args.per_device_train_batch_size
        with patch.object(rejection, "generate_together", generate_plainly):
            for start in range(0, len(rows), size):
                completions += super().select_completions(rows[start : start + size])
        return completions

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """A forward and a backward pass for the picked answers, then for the retain rows; gradients add up."""
        fillers = {"input_ids": self.processing_class.pad_token_id, "attention_mask": 0, "labels": -100}
        losses = []
        for term, weights in enumerate(inputs.pop("row_weights")):
            rows = weights > 0
            if not rows.any():
                continue
            part = {
                name: pad(inputs[name][rows], (0, max(0, PADDED_LENGTH - inputs[name].shape[1])), value=filler)
                for name, filler in fillers.items()
            }
            part |= {"term": term, "num_targets": 1 / weights[rows][0]}
            losses.append(super().training_step(model, part, num_items_in_batch))
        return sum(losses)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> torch.Tensor:
        """The model's own loss; all rows of a term have the same weight, by which the sum over tokens is scaled."""
        term, num_targets = inputs.pop("term"), inputs.pop("num_targets")
        loss = model(**inputs, use_cache=False, num_items_in_batch=num_targets).loss
        self.loss_terms[term] += loss.detach()
        return loss


class Measured(TrainerCallback):
    """Of one run: seconds of wall and CPU by part, samples by step, question and number, bytes.

    `update` is from the first forward pass to the optimizer's step, `other` what is left of the training loop.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, np.ndarray] = {}
        self.samples: dict[tuple[int, int, int], tuple[int, ...]] = {}
        self.tokens_trained = 0
        self.peak_memory = 0

    def now(self) -> np.ndarray:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        return np.array([time.perf_counter(), time.process_time()])

    def add(self, part: str, started: np.ndarray) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + self.now() - started

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = self.now()
        yield
        self.add(part, started)

    def on_train_begin(self, *args, **kwargs) -> None:
        self.seconds.clear()  # of the original answers
        self.began = self.now()

    def on_step_begin(self, *args, **kwargs) -> None:
        self.update_began = self.now()

    def on_optimizer_step(self, *args, **kwargs) -> None:
        self.add("update", self.update_began)

    def on_train_end(self, *args, **kwargs) -> None:
        parts = sum(self.seconds.values())
        self.add("all", self.began)
        self.seconds["other"] = self.seconds["all"] - parts
        if self.device.type == "cuda":
            self.peak_memory = torch.cuda.max_memory_allocated()
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            self.peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Timed:
    """Stands before a trainer in a class's bases and measures it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.measured = Measured(self.args.device)
        self.add_callback(self.measured)
        sample, score = self.sampler.sample, self.sampler.score

        def timed_sample(model, rows, counts, step):
            with self.measured.timed("generation"):
                samples = sample(model, rows, counts, step)
            for row, completions in zip(rows, samples, strict=True):
                self.measured.samples |= {(step, row["pmc_id"], i): tuple(ids) for i, ids in enumerate(completions)}
            return samples

        def timed_score(*args):
            with self.measured.timed("rewards"):
                return score(*args)

        self.sampler.sample, self.sampler.score = timed_sample, timed_score

    def get_batch_samples(self, *args):
        batches, count = super().get_batch_samples(*args)
        self.measured.tokens_trained += sum(int(batch["attention_mask"].sum()) for batch in batches)
        return batches, count


class Ours(Timed, PMCTrainer): ...


class Naive(Timed, NaiveTrainer): ...


def measure(trainer_class: type[Ours | Naive], argv: list[str]) -> Measured:
    """Trains as `pmc_rl/train.py` does; what it prints is dropped."""
    trainers = []

    def make_trainer(**kwargs) -> PMCTrainer:
        trainers.append(trainer_class(**kwargs))
        return trainers[0]

    with exit_on_recipe_error(), redirect_stdout(io.StringIO()):
        train.main(argv, make_trainer)
    return trainers[0].measured


def largest_difference(folder: Path, other: Path) -> float:
    """Of any weight between two saved models."""
    differences = [0.0]
    for path in folder.glob("*.safetensors"):
        ours, naive = load_file(path), load_file(other / path.name)
        differences += [(ours[name].float() - naive[name].float()).abs().max().item() for name in ours]
    return max(differences)


def print_table(ours: Measured, naive: Measured, steps: int) -> None:
    table = Table("", title=f"{steps} optimizer steps, {len(ours.samples)} samples")
    for heading in ("ours", "CPU s", "share", "naive", "CPU s", "share", "ours better, times", "in CPU s"):
        table.add_column(heading, justify="right")
    for part in ("generation", "rewards", "update", "other", "all"):
        cells = []
        for run in (ours, naive):
            wall, cpu = run.seconds[part]
            cells += [f"{wall:.2f}", f"{cpu:.2f}", f"{wall / run.seconds['all'][0]:.1%}"]
        cells += [f"{factor:.2f}" for factor in naive.seconds[part] / ours.seconds[part]]
        table.add_row(f"{part}, s", *cells)
    generated = [sum(map(len, run.samples.values())) / run.seconds["generation"][0] for run in (ours, naive)]
    trained = [run.tokens_trained / run.seconds["update"][0] for run in (ours, naive)]
    memory = [run.peak_memory / 2**20 for run in (ours, naive)]
    for name, (own, other) in (("tokens generated a s", generated), ("tokens trained a s", trained)):
        table.add_row(name, f"{own:.0f}", "", "", f"{other:.0f}", "", "", f"{own / other:.2f}")
    table.add_row(
        "peak memory, MiB", f"{memory[0]:.0f}", "", "", f"{memory[1]:.0f}", "", "", f"{memory[1] / memory[0]:.2f}"
    )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("recipe", help="and any of its keys as --key value")
    parser.add_argument("--steps", type=int, default=STEPS)
    given, overrides = parser.parse_known_args()
    runs = {}
    with tempfile.TemporaryDirectory() as temporary:
        for trainer_class in (Ours, Naive):
            folder = Path(temporary, trainer_class.__name__)
            settings = ["--max_steps", str(given.steps), "--output_dir", str(folder), "--snapshot_steps", "null"]
            # a process each, or the second would start with the peak of the first
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                argv = [given.recipe, *overrides, *settings, "--save_strategy", "no"]
                runs[folder] = process.submit(measure, trainer_class, argv).result()
        difference = largest_difference(*runs)
    ours, naive = runs.values()
    print_table(ours, naive, given.steps)
    equal = sum(naive.samples.get(seed) == ids for seed, ids in ours.samples.items())
    print(
        f"{equal} of {len(ours.samples.keys() | naive.samples.keys())} samples are equal; "
        f"the largest difference of a weight after the last step is {difference:.1e}."
    )


if __name__ == "__main__":
    main()
