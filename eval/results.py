"""The numbers of one model: what its passes say, turned into a column of results.json."""

from dataclasses import dataclass
from itertools import islice
from statistics import fmean

import numpy as np

from eval.data import AuditData, QuestionSet
from eval.metrics.answers import KINDS, answer_kind
from eval.metrics.intervals import bootstrap_interval, not_available, paired_interval, summary
from eval.metrics.membership import (
    LARGEST_REFERENCE_AUC,
    auc_interval,
    loss_score,
    membership_auc,
    min_k_plus_plus_score,
    min_k_score,
    privleak,
    zlib_score,
)
from eval.metrics.memorization import exact_memorization, extraction_strength
from eval.metrics.tofu import FACT_SETS, forget_quality, model_utility, option_probability, probability, truth_ratio
from eval.metrics.unlearning import (
    FORGET_SETS,
    UTILITY_SETS,
    rouge_recalls,
    tokenization_counts,
    unlearn_quality,
    utility,
)
from eval.passes import Answer, ModelPasses, TokenScores

NO_RETAIN_ONLY = (
    "needs a retain-only model: fine-tune the model before on the retain rows alone with pmc_rl/finetune.py and give "
    "its folder with retain_only_model"
)


@dataclass
class Scored:
    """Teacher-forced scores of an option set, row by row."""

    answers: list[TokenScores]
    paraphrases: list[TokenScores] | None
    wrong: list[list[TokenScores]] | None


@dataclass
class Said:
    """What one model's passes gave: greedy answers by question set (and of the option set retain), scores by set."""

    answers: dict[str, list[Answer]]
    option_answers: list[Answer]
    scored: dict[str, Scored]

    def recalls(self, questions: dict[str, QuestionSet], name: str) -> list[float]:
        """ROUGE-L recall of each greedy answer of a set."""
        return rouge_recalls([answer.text for answer in self.answers[name]], questions[name].answers)


def collect(passes: ModelPasses, data: AuditData) -> Said:
    """One greedy and one teacher-forced pass over the rows of all sets."""
    questions, options = data.questions, data.options
    retain = options["retain"].questions if "retain" in options else []
    said = iter(passes.answer([question for rows in questions.values() for question in rows.questions] + retain))
    answers = {name: list(islice(said, len(rows.questions))) for name, rows in questions.items()}

    pairs: list[tuple[str, str]] = []
    for rows in options.values():
        pairs += zip(rows.questions, rows.answers, strict=True)
        pairs += zip(rows.questions, rows.paraphrases or [], strict=False)
        pairs += [(q, text) for q, texts in zip(rows.questions, rows.wrong or [], strict=False) for text in texts]
    scores = iter(passes.score([q for q, _ in pairs], [text for _, text in pairs]) if pairs else [])
    scored = {}
    for name, rows in options.items():
        n = len(rows.questions)
        scored[name] = Scored(
            answers=list(islice(scores, n)),
            paraphrases=list(islice(scores, n)) if rows.paraphrases else None,
            wrong=[list(islice(scores, len(texts))) for texts in rows.wrong] if rows.wrong else None,
        )
    return Said(answers, list(said), scored)


def refusal_phrases(reward_kwargs: dict[str, dict]) -> dict[str, list[str]]:
    """Phrases and patterns of refusals that the recipe gives to the reward: they may be in any language."""
    given = reward_kwargs.get("rewards.refusal.refusal", {})
    return {key: list(given.get(key, ())) for key in ("phrases", "patterns")}


def unlearning_numbers(data: AuditData, said: Said, before: Said | None) -> dict:
    """The paper's two numbers and what they are made of, with intervals; `before` is what changes are told against."""
    questions = data.questions
    recalls = {name: np.array(said.recalls(questions, name)) for name in questions}
    means = {name: float(values.mean()) for name, values in recalls.items()}
    result = {"unlearn_quality": unlearn_quality(means), "utility": utility(means)}
    groups = {
        "unlearn_quality": [100 * (1 - recalls[name]) for name in FORGET_SETS if name in recalls],
        "utility": [100 * recalls[name] for name in UTILITY_SETS if name in recalls],
    }
    for name, samples in groups.items():
        result[f"{name}_interval"] = bootstrap_interval(*samples, statistic=_mean_of_means) if samples else None
    if "retain_holdout" in means:  # utility with the rows kept out of training in place of the trained ones
        result["utility_holdout"] = utility({**means, "retain": means["retain_holdout"]})
    result["sets"] = {
        name: {
            "rougeL_recall": means[name],
            "rougeL_recall_interval": bootstrap_interval(recalls[name]),
            "change_interval": paired_interval(before.recalls(questions, name), recalls[name]) if before else None,
            "recall_by_row": dict(zip(questions[name].rows, recalls[name].tolist(), strict=True)),
            "n": len(recalls[name]),
            "tokenization": tokenization_counts(questions[name].answers),
            "empty": sum(not answer.text for answer in said.answers[name]),
            "ended": fmean(answer.ended for answer in said.answers[name]),
        }
        for name in questions
    }
    return result


def _mean_of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean([np.mean(sample, axis=axis) for sample in samples], axis=0)


def truth_ratios(scored: Scored) -> list[float] | None:
    """TOFU's R of each row; None where the data has no paraphrase or no wrong answers."""
    if scored.paraphrases is None or scored.wrong is None:
        return None
    return [
        truth_ratio(paraphrase.loss, [option.loss for option in wrong])
        for paraphrase, wrong in zip(scored.paraphrases, scored.wrong, strict=True)
    ]


def tofu_numbers(data: AuditData, said: Said, retain_only: Said | None) -> dict:
    """TOFU's probability and truth ratio of each set, model utility and forget quality."""
    result: dict = {"sets": {}}
    for name, scored in said.scored.items():
        if name == "holdout":
            continue
        if name in FACT_SETS and scored.wrong is None:
            probabilities = not_available("there are no wrong answers")
        elif name in FACT_SETS:
            probabilities = summary(
                [
                    option_probability(answer.loss, [option.loss for option in wrong])
                    for answer, wrong in zip(scored.answers, scored.wrong, strict=True)
                ]
            )
        else:
            probabilities = summary([probability(answer.loss) for answer in scored.answers])
        ratios = truth_ratios(scored)
        if ratios is None:
            ratio = not_available("the data has no paraphrased and wrong answers of these rows")
        elif name == "forget":
            ratio = summary([min(value, 1 / value) for value in ratios])
        else:
            ratio = summary([max(0.0, 1 - value) for value in ratios])
        result["sets"][name] = {"probability": probabilities, "truth_ratio": ratio}
    result["model_utility"] = _model_utility(data, said, result["sets"])
    result["forget_quality"] = _forget_quality(data, said, retain_only)
    return result


def _model_utility(data: AuditData, said: Said, sets: dict) -> dict:
    names = ("retain", *FACT_SETS)
    absent = [f"{name}: {data.missing[name]}" for name in names if name in data.missing]
    absent += [f"{name} is not among the question sets" for name in FACT_SETS if name not in data.questions]
    absent += [
        f"{name}: {value['not_available']}"
        for name in names
        for value in sets.get(name, {}).values()
        if "not_available" in value
    ]
    if absent:
        return not_available("; ".join(dict.fromkeys(absent)))
    recalls = {name: said.recalls(data.questions, name) for name in FACT_SETS}
    recalls["retain"] = rouge_recalls([answer.text for answer in said.option_answers], data.options["retain"].answers)
    nine = [
        value
        for name in names
        for value in (sets[name]["probability"]["mean"], fmean(recalls[name]), sets[name]["truth_ratio"]["mean"])
    ]
    return {"value": model_utility(nine)}


def _forget_quality(data: AuditData, said: Said, retain_only: Said | None) -> dict:
    if "forget" in data.missing:
        return not_available(data.missing["forget"])
    ratios = truth_ratios(said.scored["forget"])
    if ratios is None:
        return not_available("the forget rows have no paraphrased and wrong answers")
    if retain_only is None:
        return not_available(NO_RETAIN_ONLY)
    reference = truth_ratios(retain_only.scored["forget"])
    return {
        **forget_quality(ratios, reference),
        "median": float(np.median(ratios)),
        "reference_median": float(np.median(reference)),
    }


def memorization_numbers(data: AuditData, said: Said) -> dict:
    """Exact memorization and extraction strength of the forget answers, without their end tokens."""
    if "forget" in data.missing:
        return not_available(data.missing["forget"])
    hits = [scores.hits[:-1] for scores in said.scored["forget"].answers]
    return {
        "exact_memorization": summary([exact_memorization(row) for row in hits]),
        "extraction_strength": summary([extraction_strength(row) for row in hits]),
    }


def membership_scores(data: AuditData, said: Said) -> dict[str, tuple[list[float], list[float]]]:
    """Members' and non-members' scores by attack; a row without tokens but its end has none."""
    scores: dict[str, tuple[list[float], list[float]]] = {}
    for side, name in enumerate(("forget", "holdout")):
        for row, text in zip(said.scored[name].answers, data.options[name].answers, strict=True):
            if len(row.log_probs) < 2:
                continue
            # the end token is easily told, and no part of what was learned: without it, as others have it
            own = slice(0, -1)
            values = {
                "loss": loss_score(row.log_probs),
                "zlib": zlib_score(row.log_probs, text),
                "min_k": min_k_score(row.log_probs[own]),
                "min_k_plus_plus": min_k_plus_plus_score(row.log_probs[own], row.means[own], row.stds[own]),
            }
            for attack, value in values.items():
                scores.setdefault(attack, ([], []))[side].append(value)
    return scores


def membership_numbers(data: AuditData, said: Said, retain_only: Said | None) -> dict:
    """AUC and privleak of each membership attack: forget answers are members, holdout answers non-members."""
    absent = [f"{name}: {data.missing[name]}" for name in ("forget", "holdout") if name in data.missing]
    if absent:
        return not_available("; ".join(absent))
    scores = membership_scores(data, said)
    if not all(members and others for members, others in scores.values()) or not scores:
        return not_available("no forget or no holdout answer has a token")
    result = {}
    for attack, (members, others) in scores.items():
        auc, reference = membership_auc(members, others), 0.5
        if retain_only is not None:
            reference = membership_auc(*membership_scores(data, retain_only)[attack])
        result[attack] = {
            "auc": auc,
            "auc_interval": auc_interval(members, others),
            "reference_auc": reference,
            "privleak": privleak(auc, reference)
            if reference <= LARGEST_REFERENCE_AUC
            else not_available(f"the reference model's AUC is {reference:.3f}: it knows the forget rows itself"),
            "members": len(members),
            "non_members": len(others),
        }
    return result


@dataclass
class Judge:
    """
    Who tells gibberish by perplexity: the retain-only model, which no reward saw, else the one before; `limit` is the
    95th percentile of its own perplexity on held-out answers.
    """

    name: str
    passes: ModelPasses
    limit: float


def make_judge(name: str, passes: ModelPasses, said: Said) -> Judge:
    """With the 95th percentile of the model's own perplexity on held-out answers as the limit."""
    losses = [row.loss for row in said.scored["holdout"].answers if row.loss is not None]
    return Judge(name, passes, float(np.exp(np.percentile(losses, 95))))


def kind_numbers(data: AuditData, said: Said, judge: Judge | None, refusals: dict[str, list[str]]) -> dict:
    """
    How many greedy answers to each forget set are of which kind, and the kind of each row (`kind_by_row`).

    `distinct` is the share of different texts, whatever their case and white space; `perplexity` the median under the
    judge, None without one. `refusals` are [`refusal_phrases`] beside the English ones.
    """
    retained = list(dict.fromkeys(data.questions["retain"].answers)) if "retain" in data.questions else []
    result = {}
    for name in (name for name in FORGET_SETS if name in data.questions):
        rows = data.questions[name]
        texts = [answer.text for answer in said.answers[name]]
        perplexities: list[float | None] = [None] * len(texts)
        spoken = [i for i, text in enumerate(texts) if text]
        if judge is not None and spoken:
            scores = judge.passes.score(
                [rows.questions[i] for i in spoken], [texts[i] for i in spoken], "perplexity of answers"
            )
            for i, score in zip(spoken, scores, strict=True):
                perplexities[i] = float(np.exp(score.loss))
        kinds = [
            answer_kind(question, truth, text, perplexity, judge.limit if judge else None, retained, **refusals)
            for question, truth, text, perplexity in zip(
                rows.questions, rows.answers, texts, perplexities, strict=True
            )
        ]
        result[name] = {
            **{kind: kinds.count(kind) for kind in KINDS},
            "distinct": len({" ".join(text.split()).lower() for text in texts}) / len(texts),
            "perplexity": float(np.median(known)) if (known := [p for p in perplexities if p is not None]) else None,
            "kind_by_row": dict(zip(rows.rows, kinds, strict=True)),
        }
    return result
