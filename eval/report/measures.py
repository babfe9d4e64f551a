"""Chapters of the report on training, kinds of answers, membership and general ability."""

from eval.metrics.answers import KINDS, LEAK_RECALL
from eval.report.blocks import (
    Cell,
    Details,
    Figure,
    Section,
    Table,
    Text,
    available,
    head,
    no_number,
    number,
)
from eval.report.plots import answer_kinds, dot_panel, kind_keys, model_keys, training_curves

Results = dict[str, dict]
MEMBERSHIP_ATTACKS = {"loss": "loss", "zlib": "zlib", "min_k": "min-k", "min_k_plus_plus": "min-k++"}
LOG_ROWS = 20  # of the table of training, evenly spaced


def training_section(log: list[dict]) -> Section:
    """How the unlearning run of `after` went."""
    steps = [row for row in log if "loss" in row]
    if not steps:
        return Section("training", "Training", [Text("not available: the training log has no steps")])
    names = {
        "reward_selected": "reward, trained",
        "reward": "reward, all samples",
        "reward_std": "spread of rewards",
        "collapse_loss": "collapse loss",
        "retain_loss": "retain loss",
        "completions/mean_length": "mean length",
        "frac_solved": "share solved",
    }
    rewards = sorted({key for row in steps for key in row if key.startswith("rewards/")})
    names |= {key: key.removeprefix("rewards/").removesuffix("/mean") for key in rewards}
    chosen = sorted({round(i * (len(steps) - 1) / (LOG_ROWS - 1)) for i in range(LOG_ROWS)})
    rows = [[Cell(str(steps[i]["step"])), *(number(steps[i].get(key), ".4g") for key in names)] for i in chosen]
    return Section(
        "training",
        "Training of after",
        [
            Text(
                "Each step samples answers to the unsolved questions, trains on the best one of each, and on as many "
                "rows to retain. Good: the reward of the trained answers reaches its maximum, and the retain loss "
                "peaks while answers change and is back down at the end; a run that stops in the dip has lost "
                "utility. Rewards, spread and length are those of new samples, so these curves end where all "
                "questions are solved. A spread of 0 from the start means that nothing new was sampled."
            ),
            Figure(training_curves(steps)),
            Details("Logged values, means since the log before", [Table(head("step", list(names.values())), rows)]),
        ],
    )


def kinds_section(results: Results, judge: dict | None) -> Section:
    """What the greedy answers look like."""
    columns = list(results)
    kinds = {name: column["answer_kinds"] for name, column in results.items()}
    if not next(iter(results.values()))["answer_kinds"]:
        return Section("kinds", "Kinds of answers", [Text("not available: no forget row has a true answer")])
    if judge is None:
        judged = "Gibberish is told by looks only: without held-out answers no perplexity is known to be too high."
    else:
        judged = (
            f"Not fluent is an answer whose perplexity under {judge['model']} is above "
            f"{judge['perplexity_limit']:.1f}, the 95th percentile of that model's own on held-out answers."
        )
        if judge["model"] == "before":
            judged += " FluencyPenalty asks that model as well: a retain-only model judges better."
    what = (
        f"Each greedy answer is of the first kind that fits: leak (more than {LEAK_RECALL} of the truth, or all its "
        "content words), refusal (in English, or by phrases of the recipe), gibberish (empty, repetitive or not "
        "fluent), copy (an answer from the retain rows), else hallucination, fluent and wrong. Good: no more leaks "
        "than retain_only has, and no gibberish."
    )
    rows = []
    for set_name, first in next(iter(results.values()))["answer_kinds"].items():
        rows.append([Cell(f"{set_name} (n = {sum(first[kind] for kind in KINDS)})")])
        for kind in KINDS:
            rows.append([Cell(kind), *(Cell(str(value[set_name][kind])) for value in kinds.values())])
    figure = Figure(answer_kinds(kinds, columns), kind_keys())
    table = Table(head("answers", columns), rows)
    return Section("kinds", "Kinds of answers", [Text(what), Text(judged), figure, table])


def membership_section(results: Results) -> Section:
    """AUC and privleak of each membership attack."""
    columns = list(results)
    runs, blocks = available({name: column["membership"] for name, column in results.items()})
    what = (
        "Can scores of the text alone tell forget answers (members) from answers no model saw (non-members)? AUC 1: "
        "plainly memorised, 0.5: cannot tell, 0: suppressed below unseen text, which leaks as well. Good: the AUC of "
        "retain_only, which is not 0.5 where the two sets differ by themselves; privleak near 0."
    )
    blocks = [Text(what), *blocks]
    if runs:
        rows, dots = [], {}
        for attack, label in MEMBERSHIP_ATTACKS.items():
            found = [run[attack] for run in runs.values()]
            counts = f"{found[0]['members']} members, {found[0]['non_members']} non-members"
            rows.append([Cell(f"{label} ({counts})")])
            rows.append([Cell("AUC"), *(auc_cell(run, attack) for run in runs.values())])
            rows.append([Cell("AUC of the reference"), *(number(value["reference_auc"]) for value in found)])
            rows.append([Cell("privleak, %"), *(privleak_cell(run, attack) for run in runs.values())])
            dots[label] = {name: (run[attack]["auc"], run[attack]["auc_interval"]) for name, run in runs.items()}
        panel = dot_panel("AUC with 95 % interval; dotted: 0.5, cannot tell", "AUC", dots, columns, 0.5, "membership")
        blocks += [Figure([panel], model_keys(columns, runs)), Table(head("", list(runs)), rows)]
    return Section("membership", "Membership inference", blocks)


def auc_cell(membership: dict, attack: str) -> Cell:
    """AUC of one membership attack with its interval."""
    if "not_available" in membership:
        return no_number(membership["not_available"])
    return number(membership[attack]["auc"], ".3f", membership[attack]["auc_interval"])


def privleak_cell(membership: dict, attack: str) -> Cell:
    """Its privleak."""
    if "not_available" in membership:
        return no_number(membership["not_available"])
    value = membership[attack]["privleak"]
    return no_number(value["not_available"]) if isinstance(value, dict) else number(value, ".1f")


def ability_section(results: Results) -> Section:
    """Tasks of lm-evaluation-harness."""
    runs, blocks = available({name: column["general_ability"] for name, column in results.items()})
    what = (
        "Tasks of lm-evaluation-harness that have nothing to do with the data. Good: no worse than before, within the "
        "standard errors."
    )
    rows = []
    for task, scores in next(iter(runs.values()), {}).items():
        rows.append([Cell(f"{task} (n = {scores['n']})")])
        for metric in scores:
            if metric != "n" and not metric.endswith("_stderr"):
                rows.append([Cell(metric), *(_score(run[task], metric) for run in runs.values())])
    table = [Table(head("", list(runs)), rows)] if rows else []
    return Section("ability", "General ability", [Text(what), *blocks, *table])


def _score(scores: dict, metric: str) -> Cell:
    error = scores.get(f"{metric}_stderr")
    return Cell(f"{scores[metric]:.3f}", "" if error is None else f"± {error:.3f}")
