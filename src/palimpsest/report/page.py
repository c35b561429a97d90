"""Findings as a page for people (HTML) and as text (Markdown)."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from palimpsest.report import filters, sections
from palimpsest.report.cells import attack_name, short_names
from palimpsest.report.findings import Findings
from palimpsest.report.judged import Judged, judged
from palimpsest.report.ledger import BASE
from palimpsest.report.utility import false_alarms, left_out
from palimpsest.report.verdict import ENOUGH, ERASED, Verdict, p_value

TEMPLATES = Path(__file__).parent / "templates"
MARK = b'<meta name="generator" content="palimpsest report">'
"""By which a page is known as a report's; it stands among its first ``HEAD`` bytes."""
HEAD = 1024

CHIPS = {
    "too_few": ("too few goals", "mute"),
    "unfinished": ("unfinished", "mute"),
    "cannot_tell": ("cannot tell", "mute"),
    "not_erased": ("not erased", "bad"),
    "weakened": ("weakened", "bad"),
    "wrecked": ("wrecked", "bad"),
    "not_attacked": ("not attacked", "mute"),
    "by_name_only": ("by name only", "warn"),
    "open": ("open", "mute"),
    "withstands": ("withstands", "good"),
}
"""Outcome -> the words of its chip, and its tone."""


def markdown(findings: Findings) -> str:
    """The same in Markdown, without pictures and prompts."""
    return environment(findings, autoescape=False).get_template("report.md").render(context(findings))


def style(attacks: Sequence[str]) -> str:
    """The page's style, with the rules by which it is filtered."""
    sheet = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return "\n".join((sheet, filters.sheet_rules(len(attacks)), filters.verdict_rules(CHIPS)))


def environment(findings: Findings, *, autoescape: bool) -> Environment:
    """What templates are read with: the findings' names and ways to print numbers."""
    known = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    known.globals["percent"] = lambda rate: f"{100 * min(1.0, max(0.0, rate)):.1f}%"
    known.filters["share"] = share
    known.filters["p_value"] = p_value
    known.filters["p_number"] = lambda p: p_value(p).removeprefix("p ").removeprefix("= ")
    names = {key: name for part in ("eraser", "attack") for key, name in _names(findings, part).items()}
    known.filters["short"] = lambda label: names.get(label, label)
    # Long names may break at their underscores, and before each setting.
    known.filters["wrap"] = cache(lambda name: Markup(re.sub("[_(,]", r"\g<0><wbr>", str(escape(name)))))
    known.filters["outcome"] = filters.outcome
    known.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
    return known


def share(rate: float) -> str:
    """A rate as it is printed."""
    return f"{rate:.0%}"


def _names(findings: Findings, part: Literal["eraser", "attack"]) -> dict[str, str]:
    short = short_names(getattr(key, part) for key in findings.cells)
    return short | {BASE: "base"} if part == "eraser" else short


def context(findings: Findings, folder: str | None = None) -> dict[str, Any]:
    """What is said without pictures; ``folder`` holds the pages of the concepts, if they have any of their own."""
    attacks = sorted({key.attack for key in findings.cells}, key=lambda label: (attack_name(label) != "direct", label))
    parts = {part["concept"]: part | {"cards": []} for part in sections.sections(findings, folder)}
    cards = [_card(verdict) | {"href": parts[verdict.concept]["href"]} for verdict in findings.verdicts]
    for card in cards:
        parts[card["concept"]]["cards"].append(card)
    return {
        "title": _title(findings),
        "facts": _facts(findings),
        "notices": _notices(findings),
        "tally": _tally(findings),
        "cards": cards,
        "attacks": attacks,
        "outcomes": filters.OUTCOMES,
        "sections": list(parts.values()),
        "judges": _judges(findings),
        "comparisons": findings.comparisons,
        "asr": findings.asr,
        "rules": findings.run.rules,
        "troubles": findings.troubles,
        "idle": findings.run.idle,
        "reasons": findings.run.reasons,
        "enough": ENOUGH,
        "erased": ERASED,
        "provenance": _provenance(findings),
    }


def _title(findings: Findings) -> str:
    base = Path(str(findings.run.provenance.get("base", "the model"))).name
    return f"What has {base} forgotten?"


def _facts(findings: Findings) -> list[tuple[str, str]]:
    """The line under the title."""
    told = findings.run.provenance
    goals = sorted({cell.n for cell in findings.cells.values()})
    facts = [
        ("concepts", str(len({key.concept for key in findings.cells}))),
        ("erasers", str(len({key.eraser for key in findings.cells} - {BASE}))),
        ("attacks", str(len({key.attack for key in findings.cells}))),
        ("goals each", f"{goals[0]} to {goals[-1]}" if len(goals) > 1 else "".join(map(str, goals))),
    ]
    budget = told.get("budget")
    if isinstance(budget, dict):
        facts.append(
            ("budget", f"{budget.get('name', '')} ({budget.get('looks')} looks, {budget.get('passes')} passes)")
        )
    if findings.run.judges:
        facts.append(("judged by", str(findings.run.judges[0].get("name"))))
    if told.get("started"):
        facts.append(("started", str(told["started"])[:16].replace("T", " ")))
    return facts


def _notices(findings: Findings) -> list[str]:
    """What a reader must know before any number."""
    notices = []
    missing = sum(trouble.missing for trouble in findings.troubles)
    if missing:
        notices.append(f"This run is unfinished: {missing} goals are still open. The same command continues it.")
    if findings.verdicts and all(verdict.outcome == "too_few" for verdict in findings.verdicts):
        notices.append(
            f"Too few goals to conclude: a verdict takes {ENOUGH} goals per concept. The figures show what was seen."
        )
    notices += [plant.sentence for plant in findings.plants if not plant.holds]
    notices += [f"Not measured: {measure}. {why}" for measure, why in left_out(findings.run)]
    doubts = [row.doubt for row in _calibrated(findings) if row.doubt]
    return [*notices, *(f"{doubt[0].upper()}{doubt[1:]}." for doubt in doubts)]


def _calibrated(findings: Findings) -> list[Judged]:
    """What the judges' calibration found, for the concepts that were attacked."""
    return judged(findings.run.judges, sorted({key.concept for key in findings.cells}))


def _tally(findings: Findings) -> list[dict[str, Any]]:
    """How many erasures ended how, the worst first."""
    often = Counter(verdict.outcome for verdict in findings.verdicts)
    order = {tone: number for number, tone in enumerate(("bad", "warn", "good", "mute"))}
    return [
        {"outcome": outcome, "chip": chip, "tone": tone, "count": often[outcome]}
        for outcome, (chip, tone) in sorted(CHIPS.items(), key=lambda item: order[item[1][1]])
        if often[outcome]
    ]


def _card(verdict: Verdict) -> dict[str, Any]:
    chip, tone = CHIPS[verdict.outcome]
    lines = []
    for label, kind, cell in (
        ("base", "quiet", verdict.ceiling),
        ("asked plainly", "", verdict.floor),
        (verdict.strongest.key.attack if verdict.strongest else "", "", verdict.strongest),
    ):
        if cell:
            text = f"{cell.successes} / {cell.n}"
            lines.append(
                {"label": label, "kind": kind, "rate": cell.rate, "low": cell.low, "high": cell.high, "text": text}
            )
    if verdict.neighbours:
        kept = verdict.neighbours.kept
        lines.append(
            {
                "label": "neighbours",
                "kind": "keeps",
                "rate": verdict.neighbours.value if kept is None else kept,
                "low": None,
                "high": None,
                "text": share(verdict.neighbours.value if kept is None else kept),
            }
        )
    return {
        "concept": verdict.concept,
        "eraser": verdict.eraser,
        "sentence": verdict.sentence,
        "outcome": verdict.outcome,
        "chip": chip,
        "tone": tone,
        "lines": lines,
    }


def _judges(findings: Findings) -> list[dict[str, Any]]:
    rows = []
    calibrated = {(row.judge, row.concept): row for row in _calibrated(findings)}
    for number, judge in enumerate(findings.run.judges or [{}]):
        thresholds = judge.get("thresholds")
        for concept in sorted({key.concept for key in findings.cells}):
            known = false_alarms(findings.run, concept) if number == 0 else None
            threshold = thresholds.get(concept) if isinstance(thresholds, dict) else None
            found = calibrated.get((str(judge.get("name")), concept))
            if found and not (known and known.measured):
                known = None
            if found:
                rows.append(_calibration(found, chief=number == 0))
            if known is None and (found or threshold is None):
                continue
            rows.append(
                {
                    "judge": str(judge.get("name", "not named")),
                    "chief": number == 0,
                    "concept": concept,
                    "threshold": "·" if threshold is None else f"{threshold:.3g}",
                    "hits": "·",
                    "alarms": f"{known.rate:.2%}, at most {known.high:.2%}" if known else "·",
                    "source": known.source if known else "·",
                }
            )
    return rows


def _calibration(found: Judged, *, chief: bool) -> dict[str, Any]:
    return {
        "judge": found.judge,
        "chief": chief,
        "concept": found.concept,
        "threshold": f"{found.threshold:.3g}",
        "hits": str(found.hits),
        "alarms": str(found.alarms),
        "source": f"the base's {found.against}; AUROC {found.auroc:.3f}; threshold {found.reached}",
    }


def _provenance(findings: Findings) -> list[tuple[str, str]]:
    told = findings.run.provenance
    rows = [("protocol", findings.run.protocol or "unknown")]
    rows.append(("erasers", ", ".join(sorted({key.eraser for key in findings.cells} - {BASE}))))
    rows.append(("attacks", ", ".join(sorted({key.attack for key in findings.cells}))))
    for name in ("command", "started", "base", "device", "dtype", "precision", "batch", "seed", "platform"):
        if told.get(name) is not None:
            rows.append((name, str(told[name])))
    for name in ("sampling", "budget", "versions", "weights", "prompts"):
        if isinstance(told.get(name), dict):
            rows.append((name, ", ".join(f"{key} {value}" for key, value in sorted(told[name].items()))))
    git = told.get("git")
    if isinstance(git, dict):
        rows.append(("git", f"{git.get('commit')}{', with changes not committed' if git.get('dirty') else ''}"))
    if isinstance(told.get("added_controls"), list):
        rows.append(("controls added", ", ".join(map(str, told["added_controls"]))))
    spent = findings.cells.values()
    rows.append(
        (
            "spent",
            f"{sum(cell.looks for cell in spent):,} looks, {sum(cell.passes for cell in spent):,} passes, "
            f"{sum(cell.seconds for cell in spent):,.0f} s",
        )
    )
    return rows


def raw(findings: Findings) -> str:
    """``provenance.json``, to be read on the page."""
    return json.dumps(findings.run.provenance, indent=2, ensure_ascii=False, sort_keys=True)
