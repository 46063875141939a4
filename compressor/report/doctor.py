"""What the doctor found, for people: as a table on the terminal, and as a page."""

from collections.abc import Sequence

from compressor.evaluation import Diagnosis, Kind
from compressor.report.templating import filled
from compressor.report.wording import machine, slowness

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
        headline=slowness(found),
        kinds=kinds,
        on_integers=sum(kind.share for kind in kinds if kind.integers),
        machine=machine(found.environment),
    )


def _spent(kinds: Sequence[Kind]) -> tuple[str, str]:
    microseconds, share = sum(kind.microseconds for kind in kinds), sum(kind.share for kind in kinds)
    return f"{microseconds:.1f}", f"{share:.1%}"
