"""What the doctor found, for people: as a table on the terminal, and as a page."""

from collections.abc import Sequence

from compressor.evaluation import Diagnosis, Kind
from compressor.report.templating import filled
from compressor.report.wording import machine

SHOWN = 12  # kinds of operators on a terminal


def diagnosis_rows(found: Diagnosis) -> list[list[str]]:
    """The operators that take longest, those that are alike in one line, and all others in one."""
    kinds = found.kinds()
    rows = [
        [
            kind.operator,
            "x".join(map(str, kind.shape)),
            "integers" if kind.integers else "float",
            str(kind.count),
            *_spent([kind]),
            "" if kind.gmacs_per_second is None else f"{kind.gmacs_per_second:.1f}",
        ]
        for kind in kinds[:SHOWN]
    ]
    if rest := kinds[SHOWN:]:
        rows.append(["others", "", "", str(sum(kind.count for kind in rest)), *_spent(rest), ""])
    return rows


def diagnosis_page(found: Diagnosis) -> str:
    """A self-contained page."""
    kinds = found.kinds()
    return filled(
        "doctor.html",
        found=found,
        headline=diagnosis_headline(found),
        kinds=kinds,
        on_integers=sum(kind.share for kind in kinds if kind.integers),
        machine=machine(found.environment),
    )


def diagnosis_headline(found: Diagnosis) -> str:
    """How long an image takes, and what costs most."""
    whole = f"{found.microseconds:,.0f} µs"
    if not found.findings:
        return f"{whole}: nothing that was looked for costs time"
    worst = found.findings[0]
    return f"{whole}, of which {worst.microseconds:,.0f} µs go into {worst.what}"


def _spent(kinds: Sequence[Kind]) -> tuple[str, str]:
    microseconds, share = sum(kind.microseconds for kind in kinds), sum(kind.share for kind in kinds)
    return f"{microseconds:.1f}", f"{share:.1%}"
