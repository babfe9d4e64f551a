"""Our ROUGE-L recall beside rouge_score: seconds, and values that differ, on answers and corrupted copies of them.

python benchmarks/rouge.py [JSON_LINES_WITH_ANSWERS]
"""

import json
import random
import sys
import time
from pathlib import Path
from statistics import median

from rouge_score.rouge_scorer import RougeScorer

from rewards.rouge import reference_masks, rouge_l_recall
from rewards.text import rouge_tokens, stem

QUICKSTART = Path(__file__).resolve().parents[1] / "recipes/quickstart/data/full.json"
SCORER = RougeScorer(["rougeL"], use_stemmer=True)
WAYS = {
    "rouge_score": lambda original, text: SCORER.score(original, text)["rougeL"].recall,
    "ours, cold caches": lambda original, text: rouge_l_recall(original, text, tokenize=rouge_tokens),
    "ours, warm caches": lambda original, text: rouge_l_recall(original, text, tokenize=rouge_tokens),
}


def main(path: Path) -> None:
    answers = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    words, rng = " ".join(answers).split(), random.Random(0)

    def corrupt(text: str) -> str:
        """Drops one word in ten and replaces three in ten by words of other answers."""
        kept = [word for word in text.split() if rng.random() > 0.1]
        return " ".join(rng.choice(words) if rng.random() < 0.3 else word for word in kept)

    # five samples of each answer side by side, as in training
    pairs = [(text, corrupt(text)) for text in rng.sample(answers, min(800, len(answers))) for _ in range(5)]
    seconds, recalls = {way: [] for way in WAYS}, {}
    for _ in range(3):
        for way, recall in WAYS.items():
            if way == "ours, cold caches":
                stem.cache_clear()
                reference_masks.cache_clear()
            started = time.perf_counter()
            recalls[way] = [recall(*pair) for pair in pairs]
            seconds[way].append(time.perf_counter() - started)
    for way, times in seconds.items():
        faster = median(seconds["rouge_score"]) / median(times)
        wrong = sum(ours != theirs for ours, theirs in zip(recalls[way], recalls["rouge_score"], strict=True))
        print(f"{way:<18} {median(times):.3f} s for {len(pairs)} pairs, {faster:.1f} times as fast, {wrong} differ")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else QUICKSTART)
