"""One model's answers and scores, and the numbers of its column of results.json that are made of them."""

from dataclasses import dataclass
from statistics import fmean

import numpy as np

from eval.metrics import membership, unlearning
from eval.metrics.answers import KINDS, answer_kind
from eval.metrics.intervals import bootstrap_interval, by_row, not_available, paired_interval, summary
from eval.metrics.memorization import exact_memorization, extraction_strength, within
from eval.metrics.semantic import Similarity, semantic_numbers
from eval.metrics.tofu import FACT_SETS, forget_quality, model_utility, option_probability, probability, truth_ratio
from eval.passes import Answer, ModelPasses, TokenScores
from eval.results import available
from eval.sets import AuditData, OptionSet, QuestionSet
from eval.tofu_logs import Reference

NO_REFERENCE = (
    "needs a retain-only model: fine-tune the model before on the retain rows alone with pmc_rl/finetune.py and give "
    "its folder with retain_only_model, or open-unlearning's log of one with retain_logs_path"
)


@dataclass
class Scored:
    """Teacher-forced scores of an option set, row by row."""

    answers: list[TokenScores]
    paraphrases: list[TokenScores] | None
    wrong: list[list[TokenScores]] | None

    def truth_ratios(self) -> list[float] | None:
        """TOFU's R of each row; None where the data has no paraphrase or no wrong answers."""
        if self.paraphrases is None or self.wrong is None:
            return None
        pairs = zip(self.paraphrases, self.wrong, strict=True)
        return [truth_ratio(right.loss, [option.loss for option in wrong]) for right, wrong in pairs]


@dataclass
class Outputs:
    """What one model's passes gave: greedy answers by question set, of the option set retain, and scores by set."""

    answers: dict[str, list[Answer]]
    option_answers: list[Answer]
    scored: dict[str, Scored]

    def texts(self, name: str) -> list[str]:
        return [answer.text for answer in self.answers[name]]

    def recalls(self, questions: dict[str, QuestionSet], name: str) -> list[float]:
        """ROUGE-L recall of each greedy answer of a set."""
        return questions[name].recalls(self.texts(name))

    def fact_recalls(self, questions: dict[str, QuestionSet], name: str) -> list[float | None]:
        """Fact recall of each greedy answer of a set."""
        return questions[name].fact_recalls(self.texts(name))


def collect(passes: ModelPasses, data: AuditData) -> Outputs:
    """One greedy and one teacher-forced pass over the rows of all sets."""
    retain = data.options["retain"].questions if "retain" in data.options else []
    asked = [question for rows in data.questions.values() for question in rows.questions] + retain
    answer_of = dict(zip(asked, passes.answer(asked), strict=True))
    answers = {name: [answer_of[question] for question in rows.questions] for name, rows in data.questions.items()}

    options = data.options.values()
    pairs = [(q, text) for rows in options for i, q in enumerate(rows.questions) for text in rows.texts(i)]
    score_of = dict(zip(pairs, passes.score(*map(list, zip(*pairs, strict=True))), strict=True)) if pairs else {}

    def score(rows: OptionSet) -> Scored:
        scores = [[score_of[q, text] for text in rows.texts(i)] for i, q in enumerate(rows.questions)]
        return Scored(
            answers=[row[0] for row in scores],
            paraphrases=[row[1] for row in scores] if rows.paraphrases else None,
            wrong=[row[2 if rows.paraphrases else 1 :] for row in scores] if rows.wrong else None,
        )

    scored = {name: score(rows) for name, rows in data.options.items()}
    return Outputs(answers, [answer_of[question] for question in retain], scored)


def unlearning_numbers(
    data: AuditData, outputs: Outputs, before: Outputs | None, similarity: Similarity | None
) -> dict:
    """The paper's two numbers and what they are made of; changes are told against `before`."""
    questions = data.questions
    recalls = {name: np.array(outputs.recalls(questions, name)) for name in questions}
    facts = {name: outputs.fact_recalls(questions, name) for name in questions}
    means = {name: float(values.mean()) for name, values in recalls.items()}
    forget = [100 * (1 - recalls[name]) for name in unlearning.FORGET_SETS if name in recalls]
    others = [100 * recalls[name] for name in unlearning.UTILITY_SETS if name in recalls]
    numbers = {
        "unlearn_quality": unlearning.unlearn_quality(means),
        "utility": unlearning.utility(means),
        "unlearn_quality_interval": bootstrap_interval(*forget, statistic=_mean_of_means) if forget else None,
        "utility_interval": bootstrap_interval(*others, statistic=_mean_of_means) if others else None,
    }
    if "retain_holdout" in means:  # utility with the rows kept out of training in place of the trained ones
        numbers["utility_holdout"] = unlearning.utility({**means, "retain": means["retain_holdout"]})
    numbers["sets"] = {
        name: {
            "rougeL_recall": means[name],
            "rougeL_recall_interval": bootstrap_interval(recalls[name]),
            "change_interval": paired_interval(before.recalls(questions, name), recalls[name]) if before else None,
            "recall_by_row": by_row(questions[name].rows, recalls[name].tolist()),
            "fact_recall": summary(facts[name]),
            "fact_recall_by_row": by_row(questions[name].rows, facts[name]),
            **semantic_numbers(similarity, "semantic", questions[name], [[text] for text in outputs.texts(name)]),
            "n": len(recalls[name]),
            "tokenization": unlearning.tokenization_counts(questions[name].answers),
            "empty": outputs.texts(name).count(""),
            "ended": fmean(answer.ended for answer in outputs.answers[name]),
        }
        for name in questions
    }
    return numbers


def _mean_of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean([np.mean(sample, axis=axis) for sample in samples], axis=0)


def reference_of(data: AuditData, retain_only: Outputs) -> Reference:
    """What the other models are compared with, of a retain-only one."""
    ratios = retain_only.scored["forget"].truth_ratios() if "forget" in retain_only.scored else None
    if not {"forget", "holdout"} <= retain_only.scored.keys():
        return Reference(ratios, {})
    known, unknown = (_membership_scores(data, retain_only, name) for name in ("forget", "holdout"))
    aucs = {attack: membership.membership_auc(known[attack], unknown[attack]) for attack in known if known[attack]}
    return Reference(ratios, aucs)


def tofu_numbers(data: AuditData, outputs: Outputs, reference: Reference | None) -> dict:
    """TOFU's probability and truth ratio of each set, model utility and forget quality."""
    sets = {}
    for name, scored in outputs.scored.items():
        if name == "holdout":
            continue
        if name in FACT_SETS and scored.wrong is None:
            probabilities = not_available("there are no wrong answers")
        elif name in FACT_SETS:
            pairs = zip(scored.answers, scored.wrong, strict=True)
            shares = [option_probability(right.loss, [option.loss for option in wrong]) for right, wrong in pairs]
            probabilities = summary(shares)
        else:
            probabilities = summary([probability(answer.loss) for answer in scored.answers])
        ratios = scored.truth_ratios()
        if ratios is None:
            ratio = not_available("the data has no paraphrased and wrong answers of these rows")
        elif name == "forget":
            ratio = summary([min(value, 1 / value) for value in ratios])
        else:
            ratio = summary([max(0.0, 1 - value) for value in ratios])
        sets[name] = {"probability": probabilities, "truth_ratio": ratio}
        if scored.paraphrases is not None and name not in FACT_SETS:
            sets[name]["paraphrase_probability"] = summary([probability(row.loss) for row in scored.paraphrases])
        if scored.wrong is not None:
            sets[name]["wrong_probability"] = summary(
                [fmean(probability(option.loss) for option in row) for row in scored.wrong]
            )
    return {
        "sets": sets,
        "model_utility": _model_utility(data, outputs, sets),
        "forget_quality": _forget_quality(data, outputs, reference),
    }


def _model_utility(data: AuditData, outputs: Outputs, sets: dict) -> dict:
    names = ("retain", *FACT_SETS)
    absent = [f"{name}: {data.missing[name]}" for name in names if name in data.missing]
    absent += [f"{name} is not among the question sets" for name in FACT_SETS if name not in data.questions]
    values = [(name, value) for name in names for value in sets.get(name, {}).values()]
    absent += [f"{name}: {value['not_available']}" for name, value in values if not available(value)]
    if absent:
        return not_available("; ".join(dict.fromkeys(absent)))
    texts = [answer.text for answer in outputs.option_answers]
    recalls = {name: outputs.recalls(data.questions, name) for name in FACT_SETS}
    recalls["retain"] = unlearning.rouge_recalls(texts, data.options["retain"].answers)
    nine = [
        value
        for name in names
        for value in (sets[name]["probability"]["mean"], fmean(recalls[name]), sets[name]["truth_ratio"]["mean"])
    ]
    return {"value": model_utility(nine)}


def _forget_quality(data: AuditData, outputs: Outputs, reference: Reference | None) -> dict:
    if "forget" in data.missing:
        return not_available(data.missing["forget"])
    ratios = outputs.scored["forget"].truth_ratios()
    if ratios is None:
        return not_available("the forget rows have no paraphrased and wrong answers")
    if reference is None:
        return not_available(NO_REFERENCE)
    medians = {"median": float(np.median(ratios)), "reference_median": float(np.median(reference.ratios))}
    medians["median_interval"] = bootstrap_interval(ratios, statistic=np.median)
    return {**forget_quality(ratios, reference.ratios), **medians}


def memorization_numbers(data: AuditData, outputs: Outputs) -> dict:
    """How well the forget answers are known token by token, without their end tokens."""
    if "forget" in data.missing:
        return not_available(data.missing["forget"])
    answers = outputs.scored["forget"].answers
    hits, ranks = [row.hits[:-1] for row in answers], [row.ranks[:-1] for row in answers]
    tokens = np.concatenate(ranks)
    return {
        "exact_memorization": summary([exact_memorization(row) for row in hits]),
        "extraction_strength": summary([extraction_strength(row) for row in hits]),
        # over all tokens: a few answers pushed far down are not to stand for the others
        "median_rank": float(np.median(tokens)) if len(tokens) else None,
        "within_five": summary([within(row, 5) for row in ranks]),
    }


def _membership_scores(data: AuditData, outputs: Outputs, name: str) -> dict[str, list[float]]:
    """Scores of a set's answers by attack; a row without tokens but its end has none."""
    scores: dict[str, list[float]] = {"loss": [], "zlib": [], "min_k": [], "min_k_plus_plus": []}
    for row, text in zip(outputs.scored[name].answers, data.options[name].answers, strict=True):
        if len(row.log_probs) < 2:
            continue
        scores["loss"].append(membership.loss_score(row.log_probs))
        scores["zlib"].append(membership.zlib_score(row.log_probs, text))
        # the end token is easily told, and no part of what was learned: without it, as others have it
        log_probs, means, stds = row.log_probs[:-1], row.means[:-1], row.stds[:-1]
        scores["min_k"].append(membership.min_k_score(log_probs))
        scores["min_k_plus_plus"].append(membership.min_k_plus_plus_score(log_probs, means, stds))
    return scores


def membership_numbers(data: AuditData, outputs: Outputs, reference: Reference | None) -> dict:
    """AUC and privleak of each membership attack: forget answers are members, holdout answers non-members."""
    absent = [f"{name}: {data.missing[name]}" for name in ("forget", "holdout") if name in data.missing]
    if absent:
        return not_available("; ".join(absent))
    members, others = (_membership_scores(data, outputs, name) for name in ("forget", "holdout"))
    if not members["loss"] or not others["loss"]:
        return not_available("no forget or no holdout answer has a token")
    references = dict.fromkeys(members, 0.5) | ({} if reference is None else reference.aucs)
    numbers = {}
    for attack, reference_auc in references.items():
        auc = membership.membership_auc(members[attack], others[attack])
        leak = not_available(f"the reference model's AUC is {reference_auc:.3f}: it knows the forget rows itself")
        if reference_auc <= membership.LARGEST_REFERENCE_AUC:
            leak = membership.privleak(auc, reference_auc)
        numbers[attack] = {
            "auc": auc,
            "auc_interval": membership.auc_interval(members[attack], others[attack]),
            "reference_auc": reference_auc,
            "privleak": leak,
            "members": len(members[attack]),
            "non_members": len(others[attack]),
        }
    return numbers


def perplexity_limit(outputs: Outputs) -> float:
    """The 95th percentile of the perplexity of held-out answers under the model that judges."""
    losses = [row.loss for row in outputs.scored["holdout"].answers if row.loss is not None]
    return float(np.exp(np.percentile(losses, 95)))


def _perplexities(judge: ModelPasses | None, questions: list[str], texts: list[str]) -> list[float | None]:
    """Of each answer; None of an empty one, and of all without a judge."""
    pairs = [pair for pair in zip(questions, texts, strict=True) if pair[1]]
    if judge is None or not pairs:
        return [None] * len(texts)
    scores = iter(judge.score(*map(list, zip(*pairs, strict=True)), "perplexity of answers"))
    return [float(np.exp(next(scores).loss)) if text else None for text in texts]


def kind_numbers(
    data: AuditData, outputs: Outputs, judge: ModelPasses | None, limit: float | None, reward_kwargs: dict[str, dict]
) -> dict:
    """
    How many greedy answers to each forget set are of which kind; of a perplexity above the `limit` under the `judge`,
    who no reward saw, they are gibberish.

    What the recipe's rewards take for a refusal is one beside the English ones: it may be in any language.
    """
    given = reward_kwargs.get("rewards.refusal.refusal", {})
    refusals = {key: given.get(key, ()) for key in ("phrases", "patterns")}
    retained = list(dict.fromkeys(data.questions["retain"].answers)) if "retain" in data.questions else []
    numbers = {}
    for name in (name for name in unlearning.FORGET_SETS if name in data.questions):
        rows, texts = data.questions[name], outputs.texts(name)
        perplexities = _perplexities(judge, rows.questions, texts)
        known = [value for value in perplexities if value is not None]
        answered = zip(rows.questions, rows.right_answers, texts, perplexities, strict=True)
        kinds = [answer_kind(*answer, limit, retained, **refusals) for answer in answered]
        numbers[name] = {
            **{kind: kinds.count(kind) for kind in KINDS},
            "distinct": len({" ".join(text.split()).lower() for text in texts}) / len(texts),
            "perplexity": float(np.median(known)) if known else None,
            "kind_by_row": dict(zip(rows.rows, kinds, strict=True)),
        }
    return numbers
