"""`map --prove`: what each of three readers says about every matrix, and where they contradict one another."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from loratlas.cli import output

if TYPE_CHECKING:
    from loratlas.anatomy.compare.reader_opinions import MatrixOpinions, Proof

SHOWN = 8
"""Kinds of disputes that are printed in full; the JSON has all."""

EXPLAINED = """\
names: what owners and leaves are called.
trace: what is multiplied with what in one pass without weights.
probe: whether one changed token reaches others, in a small random instance.
Numbers count agreement with the role, ≠ contradiction; – is silence."""


def map_with_proof(model: str, as_json: bool) -> None:
    """Print the proof, and leave with 1 where readers contradict one another and no reviewed entry settles it."""
    from loratlas.anatomy.compare.crosscheck import prove
    from loratlas.sources import model_source

    proof = prove(model_source(model))
    proof = replace(proof, anatomy=replace(proof.anatomy, model=model))
    if as_json:
        output.emit({**proof.anatomy.to_json(), "proof": proof.to_json()})
    else:
        _show(proof)
    if proof.open:
        raise typer.Exit(1)


def _show(proof: Proof) -> None:
    from loratlas.anatomy.compare.reader_opinions import READERS

    anatomy = proof.anatomy
    output.say(f"{anatomy.model} ({anatomy.model_type}): {len(proof.matrices)} matrices, three readers")
    drawn = output.table("role", *((word, "right") for word in ("sites", *READERS)), "the probe found")
    for role, group in _groups(proof).items():
        probes = sorted({one.probe or "" for one in group if one.agrees("probe") is not None})
        drawn.add_row(
            role, str(len(group)), *(_cell(group, reader) for reader in READERS), ", ".join(probes) or "–"
        )
    output.show(drawn)
    output.say(EXPLAINED)
    said = []
    for reader in READERS:
        agrees, speaks = proof.agreement(reader)
        said.append(f"{reader} {agrees} of {speaks}")
    output.say(f"\nAgreement with the role, where a reader speaks: {output.join(said)}.")
    if proof.silent:
        output.say(f"The probe did not run: {proof.silent}")
    else:
        output.say(f"The probe ran on {proof.tried}.")
    _show_disputes(proof)
    left = len(proof.anatomy.unresolved)
    output.say(
        f"Unresolved: {left} (`loratlas map {anatomy.model}` lists them)." if left else "Unresolved: none."
    )


def _show_disputes(proof: Proof) -> None:
    from loratlas.anatomy.compare.crosscheck import pattern

    kinds: dict[tuple[str, tuple[str, ...], str], int] = defaultdict(int)
    for one in proof.disputes:
        kinds[pattern(one.path), one.opinions(), one.table] += 1
    if not kinds:
        output.say("Disputes: none.")
        return
    output.say(f"\nDisputes ({len(proof.disputes)}, of them open {len(proof.open)}):")
    # Open ones first: they are what the exit code is about.
    for (path, opinions, table), count in sorted(kinds.items(), key=lambda item: bool(item[0][2]))[:SHOWN]:
        output.say(f"  {path} ({count})")
        output.say(f"    {', '.join(opinions)}")
        output.say(
            f"    settled by the reviewed table: {table}" if table else "    open: unresolved, left alone"
        )
    if len(kinds) > SHOWN:
        output.say(f"  and {len(kinds) - SHOWN} kinds more, all in --json")


def _groups(proof: Proof) -> dict[str, list[MatrixOpinions]]:
    """Role, with its tower where that is not the decoder → what was said of the sites that have it."""
    scopes = {site.path: site.scope for site in proof.anatomy.sites}
    groups: dict[str, list[MatrixOpinions]] = defaultdict(list)
    for one in proof.matrices:
        scope = scopes.get(one.path)
        if scope is None:
            groups["unresolved"].append(one)
        else:
            groups[one.role or "" if scope == "decoder" else f"{scope}.{one.role}"].append(one)
    return groups


def _cell(group: list[MatrixOpinions], reader: str) -> str:
    """``32``, or ``28 ≠4``; ``–`` where the reader says nothing that could be compared.

    >>> from loratlas.anatomy.compare.reader_opinions import MatrixOpinions
    >>> _cell([MatrixOpinions(path="w", role="ffn.up", names="ffn.up", trace="attn.v")], "trace")
    '≠1'
    """
    said = [one.agrees(reader) for one in group]
    agrees, against = said.count(True), said.count(False)
    return (
        " ".join(part for part in (str(agrees) if agrees else "", f"≠{against}" if against else "") if part)
        or "–"
    )
