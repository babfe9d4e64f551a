"""Times our ROUGE-L recall against rouge_score on corrupted answers and counts the values that differ.

python benchmarks/rouge.py --texts recipes/quickstart/data/full.json
"""

import argparse
import json
import random
import time
from functools import partial
from pathlib import Path
from statistics import median

from rouge_score.rouge_scorer import RougeScorer

from rewards.rouge import reference_masks, rouge_l_recall
from rewards.text import rouge_tokens, stem

DEFAULT_TEXTS = Path(__file__).resolve().parents[1] / "recipes/quickstart/data/full.json"
ORIGINALS = 800
SAMPLES = 5  # each original comes back this often, as in training with five samples a question
REPEATS = 3


def corrupt(text: str, vocabulary: list[str], rng: random.Random) -> str:
    """Drops one word in ten and replaces three in ten by words of other answers."""
    kept = [word for word in text.split() if rng.random() > 0.1]
    return " ".join(rng.choice(vocabulary) if rng.random() < 0.3 else word for word in kept)


def make_pairs(path: Path) -> list[tuple[str, str]]:
    """Pairs of an answer and a corrupted copy, the copies of one answer side by side."""
    answers = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    vocabulary = [word for answer in answers for word in answer.split()]
    rng = random.Random(0)
    originals = rng.sample(answers, min(ORIGINALS, len(answers)))
    return [(original, corrupt(original, vocabulary, rng)) for original in originals for _ in range(SAMPLES)]


def timed(recall, pairs: list[tuple[str, str]]) -> tuple[float, list[float]]:
    """Seconds and recalls of one pass over the pairs."""
    start = time.perf_counter()
    recalls = [recall(reference, prediction) for reference, prediction in pairs]
    return time.perf_counter() - start, recalls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, default=DEFAULT_TEXTS, help="JSON Lines with an `answer` column")
    pairs = make_pairs(parser.parse_args().texts)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    seconds = {"rouge_score": [], "ours, cold caches": [], "ours, warm caches": []}
    for _ in range(REPEATS):
        oracle_time, expected = timed(lambda ref, pred: scorer.score(ref, pred)["rougeL"].recall, pairs)
        stem.cache_clear()
        reference_masks.cache_clear()
        ours = partial(rouge_l_recall, tokenize=rouge_tokens)
        cold_time, cold = timed(ours, pairs)
        warm_time, warm = timed(ours, pairs)
        for times, value in zip(seconds.values(), (oracle_time, cold_time, warm_time), strict=True):
            times.append(value)

    print(f"{len(pairs)} pairs, median of {REPEATS} passes")
    print(f"{'':<18} {'seconds':>8} {'ratio':>6}")
    for name, times in seconds.items():
        print(f"{name:<18} {median(times):>8.3f} {median(seconds['rouge_score']) / median(times):>5.1f}x")
    print(f"mismatches: {sum(a != b or a != c for a, b, c in zip(expected, cold, warm, strict=True))}")


if __name__ == "__main__":
    main()
