"""Each claim with its verdict: what the evidence says, in a sentence and in tables; nothing is said without a number.

A verdict is `holds`, `does not hold`, `holds only when …` or `not measured`, by rules that are written at each claim.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from loratlas.claims.claim_tables import (
    contrast_table,
    count_table,
    estimate,
    halves_by_place,
    interval,
    listed_table,
    one_of,
    opposed_table,
    over_floor,
    rank_table,
    span,
    speed_of,
    speed_table,
    tallied,
    where,
    word,
)
from loratlas.claims.claim_verdict import FAILS, HOLDS, UNMEASURED, ClaimTable, ClaimVerdict
from loratlas.claims.comparisons import (
    HALVES,
    Contrast,
    contrasts,
    crossing,
    listed_contrasts,
    middle,
    of_study,
    possible_firsts,
    rank_curves,
    worth_having,
)
from loratlas.claims.evidence_files import ClaimEvidence
from loratlas.claims.published_claims import (
    CLAIMS,
    COSTS,
    FASTER,
    REDUCTIONS,
    counts,
    printed_alike,
    readings,
)
from loratlas.claims.study_extract import base_name
from loratlas.formats import count


def judge_claims(evidence: ClaimEvidence) -> list[ClaimVerdict]:
    """All eight verdicts, by the rules in this module."""
    rules: tuple[Callable[[ClaimEvidence], ClaimVerdict], ...] = (
        _attention, _feedforward_figures, _attention_figures, _definitions, _learned, _carries_over, _dynamic, _sizes,
    )  # fmt: skip
    return [rule(evidence) for rule in rules]


def _attention(evidence: ClaimEvidence) -> ClaimVerdict:
    """Claim 1 holds if attention alone loses nothing against all layers at equal parameters (better or equivalent) in
    every study, and does not hold if it is worse in every study that decides; else it holds only where it was."""
    equal = [one for one in contrasts(evidence.standing) if one.equal]
    attention = [one for one in equal if one.half == "attention"]
    decided = [one for one in attention if one.finding["verdict"] != "undetermined"]
    well = [one for one in decided if one.finding["verdict"] in ("better", "equivalent")]
    verdict = UNMEASURED if not decided else HOLDS if len(well) == len(decided) else FAILS
    if decided and 0 < len(well) < len(decided):
        verdict = "holds only for " + ", ".join(sorted({where(one) for one in well}))
    because = []
    if attention:
        because.append(
            f"Against all linear layers at equal parameters, attention alone is {tallied(attention)} and feed-forward "
            f"alone {tallied([one for one in equal if one.half == 'feedforward'])} of the studies."
        )
        shares = [middle(one.share for one in equal if one.half == half) for half in HALVES]
        if None not in shares:
            because.append(
                f"Of what adapters gain over the base, attention alone gives back {shares[0]:.1%} and feed-forward "
                f"alone {shares[1]:.1%} (medians over studies; below 0 % is a gain)."
            )
    because += _lists_and_halves(evidence, equal)
    tables = [contrast_table("At equal parameters, against all linear layers", equal)]
    for study in evidence.standing:
        curves = rank_curves(study)
        if curves:
            because.append(_diminishing(study, curves))
            tables.append(rank_table(study, curves))
    return _verdict(1, verdict, because, tables=tables, confound=(
        "The published \"attention\" list also holds the feed-forward block's output matrix, and 1.1 to 2.2 times the "
        "parameters of the feed-forward arm; the true role at equal parameters is an arm of every study here."
    ))  # fmt: skip


def _lists_and_halves(evidence: ClaimEvidence, equal: list[Contrast]) -> list[str]:
    """Which half comes first as it was published, and which in truth, where one study trained both."""
    said = []
    for study in evidence.standing:
        lists = {one.half: one for one in listed_contrasts([study])}
        halves = {one.half: one for one in of_study(equal, study)}
        if len(lists) == len(halves) == len(HALVES):
            said.append(
                f"Trained on {study['task']} on {study['base']}, the published lists put {_before(lists)}; the true "
                f"halves, at the parameters of full LoRA, put {_before(halves)}."
            )
    return said


def _before(both: Mapping[str, Contrast]) -> str:
    first, last = sorted(both.values(), key=lambda one: one.finding["difference"])
    gap = last.finding["difference"] - first.finding["difference"]
    return f"{word(first.half)} {gap:.3f} nats before {word(last.half)}"


def _diminishing(study: Any, curves: Any) -> str:
    first, last = ({curve.half: curve.gains()[at] for curve in curves} for at in (0, -1))
    by_half = {curve.half: curve for curve in curves}
    met = crossing(by_half["attention"], by_half["feedforward"])
    where = (
        "the curves do not cross" if met is None else f"the curves cross at {count(round(met))} parameters"
    )
    return (
        f"Diminishing returns ({study['base']}, {study['task']}): the first doubling of the rank lowers the loss by "
        f"{first['feedforward']:.3f} nats in feed-forward and {first['attention']:.3f} in attention, the last one by "
        f"{last['feedforward']:.3f} and {last['attention']:.3f}; against parameters {where}."
    )


def _feedforward_figures(evidence: ClaimEvidence) -> ClaimVerdict:
    return _figures(
        evidence,
        2,
        half="feedforward",
        published="feed-forward, as a list",
        of="less_than_model",
        counted="full fine-tuning, not full LoRA",
    )


def _attention_figures(evidence: ClaimEvidence) -> ClaimVerdict:
    return _figures(
        evidence,
        3,
        half="attention",
        published="attention, as a list",
        of="less_than_full",
        counted="full LoRA, and only with the feed-forward output matrix in the list",
    )


def _figures(
    evidence: ClaimEvidence, number: int, *, half: str, published: str, of: str, counted: str
) -> ClaimVerdict:
    """Claims 2 and 3 are of three figures: the reduction, which has to come out to the digits that were printed; the
    time, within 5 points at PEFT's own layers; the cost read as perplexity, within the range that studies of the list,
    or else of the true half, show. Without the reduction a claim does not hold; with it, it holds for those that do,
    under the baseline that gives the reduction."""
    arms = {arm.name: arm for arm in counts()}
    list_, role = arms[published], arms["attention" if half == "attention" else "feed-forward"]
    said = REDUCTIONS[number]
    because = [
        f"The reduction of {said} % comes out exactly, {getattr(list_, of):.2%}, for the list {list_.placement} at "
        f"{count(list_.trainable)} parameters, against {counted}; the true role at rank 16 trains "
        f"{count(role.trainable)}, {role.less_than_full:.2%} less than full LoRA."
    ]
    held = ["reduction"] if printed_alike(getattr(list_, of), said) else []
    tables = [count_table(list(arms.values()))] if number == 2 else []
    speed = speed_of(evidence, published)
    if speed is None:
        because.append("Training time on this shape: not measured.")
    else:
        peft, ours = (1 - speed[side]["over_full"]["median"] for side in ("peft", "ours"))
        because.append(
            f"A step of the published list is {peft:.1%} shorter than one of full LoRA with PEFT's layers and "
            f"{ours:.1%} with ours, where {FASTER[number]:.0%} was published. PEFT's full LoRA takes "
            f"{over_floor(evidence, 'peft')} the frozen base's floor and ours {over_floor(evidence, 'ours')}."
        )
        held += ["time"] if abs(peft - FASTER[number]) <= 0.05 else []
        tables.append(speed_table(evidence))
    cost = readings(COSTS[number])
    because.append(
        f"A performance cost of {COSTS[number]:.1%} is {cost['as_perplexity_nats']:.3f} nats if it was perplexity, and "
        f"{cost['as_loss_nats']:.2f} nats (perplexity times {cost['as_loss_factor']:.1f}) if it was a loss near 2.5."
    )
    listed = [one for one in listed_contrasts(evidence.standing) if one.half == half]
    here = [one for one in contrasts(evidence.standing) if one.half == half]
    if listed:
        because += [_as_listed(one, here) for one in listed]
        tables.append(
            listed_table(f"The published {word(half)} list, trained, and the true role", listed, here)
        )
    if here:
        widest = max(here, key=lambda one: one.finding["difference"])
        because.append(
            f"At its own learning rate {word(half)} alone costs {span([one.finding['difference'] for one in here])} "
            f"nats over {len(here)} comparisons, the most on {where(widest)}."
        )
        tables.append(contrast_table(f"{word(half).capitalize()} alone, against all linear layers", here))
    costs = [one.finding["difference"] for one in listed or here]
    if costs and min(costs) <= cost["as_perplexity_nats"] <= max(costs):
        held.append("cost")
    verdict = f"holds only when the baseline is {counted}"
    if len(held) < 3:
        verdict += f", and then for the {' and the '.join(held)} alone"
    if "reduction" not in held:
        verdict = FAILS
    return _verdict(number, verdict, because, tables=tables, confound=(
        "Two baselines for two reductions; one learning rate for all arms makes an arm that is far from its own "
        "best rate look costly."
    ))  # fmt: skip


def _as_listed(one: Contrast, roles: list[Contrast]) -> str:
    """What a list costs beside what its half costs at the reference's parameters, in the same study."""
    said = (
        f"Trained on {where(one)}, the {word(one.half)} list costs {one.finding['difference']:+.3f} nats "
        f"({interval(one.finding['ci'])}: {one.finding['verdict']}) against full LoRA"
    )
    role = [each for each in of_study(roles, one.study) if each.equal]
    if role:
        said += f", and {word(one.half)} alone with the parameters of full LoRA {role[0].finding['difference']:+.3f}"
    return said + "."


def _definitions(evidence: ClaimEvidence) -> ClaimVerdict:
    """Claim 4 holds only when two definitions are compared: perplexity is the exponential of the loss it is made of.
    Where no study's arms change places under another definition, it does not hold."""
    studies = evidence.standing
    turned = [(study, pair) for study in studies for pair in study["opposed"]]
    settled = [(study, pair) for study, pair in turned if pair["established"]]
    compared = sum(study["compared"] for study in studies)
    verdict = "holds only when loss and perplexity are averaged over different units" if turned else FAILS
    because = [
        "Perplexity is exp(loss): of one and the same average the two cannot disagree.",
        f"In {len(studies)} studies, {len(turned)} of {compared} pairs of arms and other definitions rank the arms "
        f"the other way round than the token mean does; {len(settled)} of these are established by "
        "their intervals.",
    ]
    tables = [opposed_table(turned)] if turned else []
    return _verdict(4, verdict if studies else UNMEASURED, because, tables=tables, confound=(
        "A mean over examples, a mean over batches and a mean of per-example perplexities are different numbers "
        "under one name; docs/results/definitions.md has them all."
    ))  # fmt: skip


def _learned(evidence: ClaimEvidence) -> ClaimVerdict:
    return _by_placement(evidence, 5, "placement by importance that the run's own first steps measure")


def _dynamic(evidence: ClaimEvidence) -> ClaimVerdict:
    return _by_placement(evidence, 7, "a placement that moves while training")


def _by_placement(evidence: ClaimEvidence, number: int, what: str) -> ClaimVerdict:
    """Claims 5 and 7 hold if, on preregistered unseen cases at equal compute, the policy is better than `all` in at
    least two thirds of the cases and worse in none; they do not hold if it is worse as often as better, at the rates
    that were registered or at finer ones."""
    placements = evidence.placement
    cases = [case for case in (placements or {}).get("cases", ()) if case.get("unseen")]
    if not placements or not cases:
        return _verdict(number, UNMEASURED, ["No preregistered unseen case is judged yet."])
    pooled = placements["pooled_unseen"]
    better, worse, total = pooled["better"], pooled["worse"], pooled["cases"]
    won = sorted({f"{c['task']} on {base_name(c['base'])}" for c in cases if c["auto_minus_all"]["high"] < 0})
    verdict = f"holds only for {', '.join(won)}"
    again = pooled.get("finer")
    if any(read["worse"] >= read["better"] for read in (pooled, again) if read):
        verdict = FAILS
    elif worth_having(pooled):
        verdict = HOLDS
    share = pooled.get("share_lost") or {}
    scale = "no placement tried there beats `all` beyond noise, so that there is no scale for what it loses"
    if share.get("value") is not None:
        scale = (
            f"of what the best placement gains over `all` it loses {share['value']:.0%} "
            f"({share['low']:.0%} to {share['high']:.0%})"
        )
    because = [
        f"On {total} preregistered unseen cases, {what} is better than `all` at equal compute in {better} and worse in "
        f"{worse}; {scale}."
    ]
    if again:
        because.append(
            f"At rates 1.26 apart, read afterwards, it is better in {again['better']} and worse in {again['worse']} of "
            f"{again['cases']}."
        )
    if evidence.auto and (moves := evidence.moves):
        now = evidence.auto["pooled_unseen"]
        because.append(
            f"Since then `auto` begins along its inputs: on {now['cases']} further cases of small bases better than "
            f"`all` in {now['better']}, worse in {now['worse']}; its moves in {moves['better']} and {moves['worse']}."
        )
    rows = [
        (
            base_name(case["base"]), case["task"], str(case["budget"]), str(case["steps"]),
            estimate(case["auto_minus_all"], ".4f"), estimate(case["steps_saved"], ".0f"),
        )
        for case in cases
    ]  # fmt: skip
    table = ClaimTable(
        title="`auto` − `all` on unseen cases, at equal compute",
        columns=("base", "task", "budget", "steps", "nats", "steps saved"),
        rows=tuple(rows),
    )
    return _verdict(number, verdict, because, tables=[table])


def _carries_over(evidence: ClaimEvidence) -> ClaimVerdict:
    """Claim 6 holds if one placement can be first in every study, a study that decides among them. Else it holds only
    when the task stays the same, if one placement can be first on all bases of each task that several bases were
    trained on, and does not hold if there is a task without one. What noise may have put first is not taken for it."""
    equal = [one for one in contrasts(evidence.standing) if one.equal]
    firsts: dict[str, tuple[Any, frozenset[str]]] = {}
    for name in dict.fromkeys(one.study["name"] for one in equal):
        both = {one.half: one for one in equal if one.study["name"] == name}
        if len(both) == 2:
            firsts[name] = (next(iter(both.values())).study, possible_firsts(both))
    if len(firsts) < 2:
        return _verdict(
            6, UNMEASURED, ["Fewer than two finished studies hold both halves at equal parameters."]
        )
    by_task: dict[str, list[frozenset[str]]] = {}
    bases: dict[str, set[str]] = {}
    for study, possible in firsts.values():
        by_task.setdefault(study["task"], []).append(possible)
        bases.setdefault(study["task"], set()).add(study["base"])
    several = {task: possible for task, possible in by_task.items() if len(bases[task]) > 1}
    alike = [task for task, possible in several.items() if frozenset.intersection(*possible)]
    everywhere = frozenset.intersection(*(possible for _, possible in firsts.values()))
    decided = [possible for _, possible in firsts.values() if len(possible) == 1]
    if not decided or (not everywhere and not several):
        verdict = UNMEASURED
    elif everywhere:
        verdict = HOLDS
    else:
        verdict = "holds only when the task stays the same" if len(alike) == len(several) else FAILS
    types = sorted({study["model_type"] for study, _ in firsts.values()})
    largest = max(study["parameters"] for study, _ in firsts.values())
    first = Counter(one_of(possible) for _, possible in firsts.values())
    because = [
        f"{len(firsts)} studies on {len(types)} architectures ({', '.join(types)}), the largest base with "
        f"{count(largest)} parameters: first is "
        + ", ".join(f"{words} in {studies}" for words, studies in sorted(first.items()))
        + f". Of {len(several)} {'task' if len(several) == 1 else 'tasks'} on more than one base, "
        f"{len(alike)} can have the same first on all of them" + (f" ({', '.join(alike)})." if alike else ".")
    ]
    rows = [
        (study["base"], study["model_type"], study["task"], str(study["steps"]), one_of(possible))
        for study, possible in firsts.values()
    ]
    table = ClaimTable(
        title="Lowest loss at equal parameters, as far as the study decides",
        columns=("base", "type", "task", "steps", "first"),
        rows=tuple(rows),
    )
    return _verdict(6, verdict, because, tables=[table])


def _sizes(evidence: ClaimEvidence) -> ClaimVerdict:
    """Claim 8 holds if the median difference between a half and all layers, at equal parameters, is at least a tenth
    of what adapters gain over the base; does not hold if every one is below that; else only where it is not."""
    equal = [one for one in contrasts(evidence.standing) if one.equal and one.share is not None]
    if not equal:
        return _verdict(8, UNMEASURED, ["No finished study compares halves of a model at equal parameters."])
    shares = [abs(one.share) for one in equal if one.share is not None]
    large = [one for one in equal if one.share is not None and abs(one.share) >= 0.1]
    middle_share = middle(shares)
    assert middle_share is not None
    verdict = HOLDS if middle_share >= 0.1 else FAILS if not large else (
        "holds only for " + "; ".join(halves_by_place(large))
    )  # fmt: skip
    saved = [one.finding["steps_saved"] for one in equal if one.finding.get("steps_saved")]
    because = [
        f"At equal parameters and at each arm's own rate, a placement's difference from all linear layers is "
        f"{middle_share:.1%} of what adapters gain over the base (median of {len(equal)}; largest {max(shares):.1%})."
    ]
    if saved:
        worth = middle(abs(one["value"]) for one in saved if one.get("value") is not None)
        if worth is not None:
            because.append(f"The median difference is worth {worth:.0f} steps of the reference.")
    return _verdict(
        8, verdict, because, tables=[contrast_table("Differences, and their share of the gain", equal)]
    )


def _verdict(number: int, verdict: str, because: list[str], **more: Any) -> ClaimVerdict:
    tables = tuple(table for table in more.pop("tables", ()) if table.rows)
    return ClaimVerdict(
        number=number,
        claim=CLAIMS[number - 1],
        verdict=verdict,
        because=tuple(because),
        tables=tables,
        **more,
    )
