"""What RESULTS.md says of criteria without labels. Knows nothing about how any was measured or judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tapioca_export.selection import SelectionSettings

from . import judging
from .judging import INFLUENCE, Bank, Worths
from .label_free import OF_LOGITS, PROPOSES, SHIPPED
from .tables import table

NUM_PAIRS = 5  # told of, of all
NUMBERS = ("correlation", "regret", "of several")
SHORTLIST = SelectionSettings.shortlist
SHORTLISTERS = (PROPOSES, SHIPPED, INFLUENCE)


def text(file: Mapping[str, Any]) -> str:
    """Tell which criterion without labels foretells best, and what it is worth where it was not chosen."""
    bank = judging.families(file)
    chooses, tells = map(Worths, judging.halves(bank))
    best = chooses.best()
    shown = list(dict.fromkeys((best, PROPOSES, INFLUENCE)))
    models = [model for family in bank.values() for model in family]
    networks = {(_network(model["task"]), model["num_layers"], model["seed"]) for model in models}
    parts = [
        _HEAD.format(
            num_networks=len(networks),
            num_twice=len(models) - len(networks),
            num_cases=sum(len(model["cases"]) for model in models),
            num_criteria=len(chooses.names),
            num_singles=len(_singles(chooses)),
            num_chooses=sum(map(len, chooses.bank.values())),
            num_tells=sum(map(len, tells.bank.values())),
            commit=file["commit"][:10],
        ),
        _all_criteria(chooses, tells, best),
        f"**{best}** is chosen{_shipped(best)}. {_instead_of(tells, best, INFLUENCE)}"
        + _without_lonely(tells, best),
        _nothing(tells.bank),
        "On the half that tells, kind by kind. " + _lonely(tells.bank),
        table(["kind of model", "models", "criterion", *NUMBERS], list(_by_kind(tells, shown))),
        _SHORTLISTS,
        table(
            ["half", "layers", "cases", *SHORTLISTERS, "by chance"], list(_recalls(chooses.bank, tells.bank))
        ),
        "Chosen again by all kinds of networks but one, and told on that one:",
        table(
            ["told on", "criterion", *NUMBERS],
            [row for kind in _kinds(bank) for row in _left_out(bank, kind)],
        ),
        "What only a head with logits has, on the half that tells:",
        table(["criterion", *NUMBERS], list(_of_logits(tells.bank, best))),
    ]
    return "\n\n".join(parts)


_HEAD = """Target rows often have no labels. {num_singles} ways to say from unlabelled rows which layer
should go first, and all pairs of them (by the mean of a layer's two ranks), {num_criteria} criteria in
all, were put to {num_cases} cases: {num_networks} networks under shifts, {num_twice} of them judged in
two ways, which count as two models. `benchmarks/evidence/label_free.py` has their formulas; the numbers
are in [criteria.json](evidence/criteria.json), `{commit}`, by `python -m benchmarks.evidence.criteria
--data FOLDER`.

*Correlation* is Spearman's, over the layers of a case, with what dropping each layer gains on fresh
rows. *Regret* is how much more of the error is gone where TALE chooses one layer with labels, on the
rows that the criterion saw without; *of several*, where each chooses a quarter of the layers: one, where
there are fewer than eight. There, gains are cut off at -1. Means over cases, models and kinds of models,
in this order. One criterion *beats* another if the 95 % interval of the difference of correlations, over
networks, is above zero, and neither regret is higher. {num_chooses} models choose the criterion of the
best mean place by the three numbers; {num_tells} others, of other seeds or sizes, tell what it is worth."""


def _singles(worths: Worths) -> list[str]:
    return [name for name in worths.names if " + " not in name]


def _all_criteria(chooses: Worths, tells: Worths, best: str) -> str:
    places = dict(zip(chooses.names, chooses.places(), strict=True))
    singles = _singles(chooses)
    pairs = sorted(set(places) - set(singles), key=lambda name: (places[name], name))[:NUM_PAIRS]
    rows = []
    for name in sorted({*singles, *pairs}, key=lambda name: (places[name], name)):
        shown = f"**{name}**" if name == best else name
        rows.append([shown, f"{places[name]:.0f}", *_worth(chooses.of(name)), *_worth(tells.of(name))])
    for name, worth in judging.references(tells.bank).items():
        rows.append([f"*{name}*", "", "", "", "", *_worth(worth)])
    return table(["criterion", "place", *NUMBERS, *(f"{number}, other half" for number in NUMBERS)], rows)


def _worth(found: judging.Worth) -> list[str]:
    numbers = (found.correlation, found.regret, found.regret_of_several)
    return ["" if np.isnan(number) else f"{number:+.3f}" for number in numbers]


def _shipped(best: str) -> str:
    goes_by = "`--criterion tapioca` goes by"
    return f", and what {goes_by}" if best == SHIPPED else f"; {goes_by} **{SHIPPED}**"


def _without_lonely(tells: Worths, name: str) -> str:
    """Say what is left of that where no kind counts that the half has a single model of."""
    alone = _alone(tells.bank)
    if not alone:
        return ""
    several = {family: models for family, models in tells.bank.items() if family not in alone}
    found = _instead_of(Worths(several, (name, INFLUENCE)), name, INFLUENCE)
    return (
        f" Without {', '.join(alone)}, of which that half has a single network: {found[0].lower()}{found[1:]}"
    )


def _instead_of(tells: Worths, name: str, other: str) -> str:
    if name == other:
        return "It is plain influence."
    found, own = tells.interval(name, other), tells.mean()
    change = own[tells.names.index(name)] - own[tells.names.index(other)]
    numbers = ", ".join(
        f"{number} {value:+.3f} ({low:+.3f} to {high:+.3f})"
        for number, value, (low, high) in zip(NUMBERS, change, found, strict=True)
    )
    word = "neither beats nor is beaten by"
    if judging.beats(change, found):
        word = "beats"
    elif judging.beats(-change, [(-high, -low) for low, high in found]):
        word = "is beaten by"
    return f"On the other half it {word} *{other}*: {numbers}."


def _nothing(bank: Bank) -> str:
    """Say whether dropping anything pays on average, where labels choose."""
    one, several = (
        judging.references(bank)[judging.NOTHING].__dict__[n] for n in ("regret", "regret_of_several")
    )
    word = "would have been better than" if max(one, several) < 0 else "was not always better than"
    return (
        f"On average over the cases that tell, to drop nothing {word} what TALE chose with labels when it "
        f"had to drop one layer (by {-one:.3f} of the error) or a quarter (by {-several:.3f}). A criterion "
        "without labels says which layers do least harm, and not that there is anything to gain."
    )


def _lonely(bank: Bank) -> str:
    alone = _alone(bank)
    if not alone:
        return "Intervals above draw networks of each kind anew."
    return (
        f"Intervals above draw networks of each kind anew; of {', '.join(alone)} there is one, which says "
        "nothing of how much others differ, and has the weight of a kind."
    )


def _alone(bank: Bank) -> list[str]:
    return [family for family, models in bank.items() if len(models) == 1]


def _by_kind(tells: Worths, shown: Sequence[str]) -> Iterator[list[str]]:
    for family, found in tells.of_model.items():
        for name in shown:
            worth = judging.Worth(*found[tells.names.index(name)].mean(axis=0).tolist())
            yield [family, str(found.shape[1]), name, *_worth(worth)]


_SHORTLISTS = f"""How often a shortlist of {SHORTLIST} holds the layer that TALE chooses, of models with more
layers. `tapioca+tale` goes by *{PROPOSES}*, which costs least. It ranks first what
changes little: a layer that does harm changes much, and is found by labels alone."""


def _recalls(chooses: Bank, tells: Bank) -> Iterator[list[str]]:
    """Yield, by half and number of layers, how often the shortlist holds what labels choose."""
    for half, bank in (("chooses", chooses), ("tells", tells)):
        models = [model for family in bank.values() for model in family]
        for depth in sorted({m["num_layers"] for m in models if m["num_layers"] > SHORTLIST}):
            own = {"": [model for model in models if model["num_layers"] == depth]}
            shares = [judging.recall(own, name, SHORTLIST) for name in SHORTLISTERS]
            num_cases = sum(len(model["cases"]) for model in own[""])
            yield [half, str(depth), str(num_cases), *(f"{s:.0%}" for s in (*shares, SHORTLIST / depth))]


def _network(task: str) -> str:
    """Return what kind of network a task is asked of: the same language models are judged in two ways."""
    return "language" if task in ("text-generation", "multiple-choice") else task


def _kinds(bank: Bank) -> list[str]:
    return list(dict.fromkeys(map(_network, bank)))


def _left_out(bank: Bank, kind: str) -> list[list[str]]:
    shared = judging.names(bank)
    others = Worths({task: found for task, found in bank.items() if _network(task) != kind}, shared)
    told = Worths({task: found for task, found in bank.items() if _network(task) == kind}, shared)
    shown = dict.fromkeys((others.best(), INFLUENCE))
    return [[kind, name, *_worth(told.of(name))] for name in shown]


def _of_logits(bank: Bank, best: str) -> Iterator[list[str]]:
    with_logits = {f: m for f, m in bank.items() if set(OF_LOGITS) <= set(m[0]["cases"][0]["scores"])}
    if with_logits:
        worths = Worths(with_logits)
        for name in (*OF_LOGITS, best, INFLUENCE):
            yield [name, *_worth(worths.of(name))]
