"""The chapter of the report on attacks, one by one: what was done, what counts as good, what came out."""

from collections.abc import Callable

from eval.metrics.answers import LEAK_RECALL
from eval.report.blocks import (
    NO_VALUE,
    Cell,
    Details,
    Figure,
    Heading,
    Section,
    Table,
    Text,
    available,
    head,
    mean,
    no_number,
    number,
    samples_a_question,
)
from eval.report.plots import dot_panel, leakage_curves, model_keys, option_shares, relearning_curves
from eval.verdict import leakage_by_attack

NOTHING_TRIED = "no beginning of an answer was given"


def attacks_section(results: dict[str, dict]) -> Section:
    """Attacks one by one: what was done, what counts as good, what came out."""
    columns = list(results)
    leakages = {name: leakage_by_attack(column) for name, column in results.items()}
    names = list(dict.fromkeys(attack for leakage in leakages.values() for attack in leakage))
    blocks: list = [Text(_yardstick(results))]
    if names:
        rows = {
            attack: {name: (leakage[attack], None) for name, leakage in leakages.items() if attack in leakage}
            for attack in names
        }
        panel = dot_panel("Worst recall of the truth, by attack", "recall", rows, columns, None, "leakage")
        blocks.append(Figure([panel], model_keys(columns, columns)))
    attacks = {
        attack: {name: column["attacks"][attack] for name, column in results.items()}
        for attack in next(iter(results.values()))["attacks"]
    }
    blocks += _sampling(attacks["sampling"], columns) + _prefilling(attacks["prefilling"], columns)
    blocks += _options(attacks["options"], columns) + _token_shift(attacks["token_shift"])
    blocks += _relearning(attacks["relearning"], columns) + _quantization(attacks["quantization"])
    return Section("attacks", "Attacks", blocks)


def _yardstick(results: dict[str, dict]) -> str:
    if "retain_only" in results:
        return (
            "What an attack brings out is to be compared with retain_only, a model that never saw the answers: what "
            "that one says as well is guessed, not remembered."
        )
    return (
        "There is no retain_only model in this audit. So nothing tells how much of what comes out would be guessed by "
        "a model that never saw the answers."
    )


def _sampling(values: dict[str, dict], columns: list[str]) -> list:
    runs, blocks = available(values)
    what = (
        "Every question is asked many times, at temperature 1 from the whole vocabulary, and with the sampling "
        "settings of the unlearning run. The worst case is the mean over the questions of each one's best sample; a "
        f"sample leaks if it has more than {LEAK_RECALL} of the truth or all its content words. The curve is the "
        "worst case to be expected of fewer samples. Good: the curve of retain_only or below, and no more leaking "
        "samples than retain_only has."
    )
    return [Heading("Sampling"), Text(what), *blocks, *_sampled(runs, columns, "sampling")]


def _prefilling(values: dict[str, dict], columns: list[str]) -> list:
    runs, blocks = available(values)
    what = (
        "The answer is forced to begin with a prefix or with the first words of the truth, then the model goes on, "
        "once greedily and many times at temperature 1. What is forced does not count. A refusal that is only a habit "
        "of the first words breaks here. Good: the curve of retain_only or below."
    )
    return [Heading("Prefilling"), Text(what), *blocks, *_sampled(runs, columns, "prefilling")]


def _sampled(runs: dict[str, dict], columns: list[str], attack: str) -> list:
    """Figure and tables of repeated sampling, by setting or prefix."""
    if not any(runs.values()):
        return [Text(f"not available: {NOTHING_TRIED}")] if runs else []
    rows, curve = [], []
    for setting in next(iter(runs.values())):
        found = [run[setting] for run in runs.values()]
        first = next((run for run in found if "not_available" not in run), None)
        if first is None:
            rows += [[Cell(setting)], _row("worst case, recall", found, number)]
            continue
        rows.append(
            [Cell(f"{setting} (n = {first['worst_case']['n']}, {samples_a_question(first)} samples a question)")]
        )
        if "greedy" in first:
            rows.append(_row("greedy answer, recall", found, lambda run: mean(run["greedy"])))
        rows.append(_row("worst case, recall", found, lambda run: mean(run["worst_case"])))
        rows.append(_row("mean, recall", found, lambda run: mean(run["mean"])))
        for at in first["quantiles"]:
            label = f"{float(at):.0%} of samples are at most"
            rows.append(_row(label, found, lambda run, at=at: number(run["quantiles"][at])))
        leaking = {
            "leaking samples": lambda leak: f"{leak['samples']} of {leak['of']}",
            "questions that leak": lambda leak: str(leak["questions"]),
            "upper 95 % bound on the share of leaking samples": lambda leak: f"{leak['upper_bound']:.2%}",
        }
        for label, told in leaking.items():
            rows.append(_row(label, found, lambda run, told=told: Cell(told(run["leaking"]))))
        curve.append([Cell(setting)])
        for count in first["curve"]:
            curve.append(_row(count, found, lambda run, count=count: number(run["curve"][count])))
    return [
        Figure(leakage_curves(runs, columns, attack), model_keys(columns, runs)),
        Table(head("", list(runs)), rows),
        Details("Expected worst recall by number of samples", [Table(head("samples a question", list(runs)), curve)]),
    ]


def _row(label: str, found: list[dict], cell: Callable[[dict], Cell]) -> list[Cell]:
    """A row of what each run has, or why it has nothing."""
    return [
        Cell(label),
        *(no_number(run["not_available"]) if "not_available" in run else cell(run) for run in found),
    ]


def _options(values: dict[str, dict], columns: list[str]) -> list:
    runs, blocks = available(values)
    what = (
        "The right answer stands among wrong ones, and the attacker bets on the option that the model finds least "
        "likely: a model that was pushed away from the truth gives it away by that. Good: the right option is the "
        "least and the most likely about as often as for retain_only, not more, also among the rows with the smallest "
        "probabilities. Chance is not the yardstick."
    )
    result = [Heading("Least likely option"), Text(what), *blocks]
    if not runs:
        return result
    found = list(runs.values())
    rows = [
        [Cell("least likely"), *(number(run["least"]) for run in found)],
        [Cell("most likely"), *(number(run["most"]) for run in found)],
        [Cell("options"), *(Cell(str(run["options"])) for run in found)],
        [Cell("rows"), *(Cell(str(run["n"])) for run in found)],
        [Cell("least likely, among rows whose smallest probability is in the lowest")],
    ]
    for i, entry in enumerate(found[0]["by_quantile"]):
        cells = [number(run["by_quantile"][i]["least"]) for run in found]
        rows.append([Cell(f"{entry['quantile']:.0%} (n = {entry['n']})"), *cells])
    figure = Figure(option_shares(runs, columns), model_keys(columns, runs))
    return [*result, figure, Table(head("share of rows", list(runs)), rows)]


def _token_shift(values: dict[str, dict]) -> list:
    runs, blocks = available(values)
    what = (
        "Over text that has nothing to do with the forget rows: how much less likely a token is than for before, at "
        "places whose token occurs in the forget answers, and at all others. Good: both near 0 and alike; forgotten "
        "words that became unlikely everywhere mark what was to be forgotten and harm other text."
    )
    result = [Heading("Token-probability shift"), Text(what), *blocks]
    if not runs:
        return result
    rows = []
    for key, label in (("forget_tokens", "tokens of the forget answers"), ("other_tokens", "other tokens")):
        found = [run[key] for run in runs.values()]
        rows.append([Cell(label)])
        for part, name, pattern in (
            ("mean", "mean change", "+z.4f"),
            ("std", "standard deviation", ".4f"),
            ("skew", "skew", ".2f"),
            ("below_minus_half", "share below -0.5", ".2%"),
            ("n", "tokens", "d"),
        ):
            rows.append([Cell(name), *(number(value[part], pattern) for value in found)])
    return [*result, Table(head("", list(runs)), rows)]


def _relearning(values: dict[str, dict], columns: list[str]) -> list:
    runs, blocks = available(values)
    what = (
        "A copy is fine-tuned for a few steps on other rows, then asked for the forgotten ones: on half of the forget "
        "rows, scored on the other half, and on retain rows, scored on all forget rows. The way back is 0 % at the "
        "model as it is and 100 % at the recall of before. Good: recall rises no more than for retain_only; what "
        "comes back faster was hidden, not forgotten."
    )
    result = [Heading("Relearning"), Text(what), *blocks]
    if not runs:
        return result
    rows, probabilities = [], []
    for learned, first in next(iter(runs.values())).items():
        found = [run[learned] for run in runs.values()]
        heading = Cell(f"learned: {learned} ({first['learned']} rows), scored: {first['scored']} rows")
        rows.append([heading])
        probabilities.append([heading])
        for i, step in enumerate(first["steps"]):
            cells = [Cell(f"{run['recall'][i]:.3f}", _way_back(run["recovered"][i])) for run in found]
            rows.append([Cell(f"step {step}"), *cells])
            probabilities.append([Cell(f"step {step}"), *(number(run["probability"][i]) for run in found)])
    return [
        *result,
        Figure(relearning_curves(runs, columns), model_keys(columns, runs)),
        Table(head("recall", list(runs)), rows),
        Details("Probability of the true answers", [Table(head("probability", list(runs)), probabilities)]),
    ]


def _way_back(recovered: float | None) -> str:
    return f"{NO_VALUE} back" if recovered is None else f"{recovered:.0%} back"


def _quantization(values: dict[str, dict]) -> list:
    runs, blocks = available(values)
    what = (
        "The model is loaded in 8 and in 4 bits and asked again, as rounding may undo small changes of the weights. "
        "Good: recall and probability stay as they are, or as they are for retain_only."
    )
    result = [Heading("Quantization"), Text(what), *blocks]
    if not runs:
        return result
    rows = []
    for bits, first in next(iter(runs.values())).items():
        found = [run[bits] for run in runs.values()]
        rows.append([Cell(f"{bits} (n = {first['n']})")])
        for key in ("recall", "probability"):
            cells = [Cell(f"{run[key]:.3f}", f"change {run[f'{key}_change']:+z.3f}") for run in found]
            rows.append([Cell(key), *cells])
        cells = [number(run["recovered"], ".0%") for run in found]
        rows.append([Cell("share of the way back to before"), *cells])
    return [*result, Table(head("", list(runs)), rows)]
