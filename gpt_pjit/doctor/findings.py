"""What a check finds on a host, and what the checks of all hosts come to."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpt_pjit.core.errors import ConfigError, HostFailedError
from gpt_pjit.core.runtime import everyone

NO_REMEDY = "correct what this names"
SHOWN = 3  # of the values that differ between hosts


class CheckFailedError(Exception):
    """A check has failed: what was `found`, and the `remedy`."""

    def __init__(self, found: str, remedy: str):
        super().__init__(found)
        self.remedy = remedy


@dataclass(frozen=True)
class Finding:
    """The result of one check, on the processes named; all of them if none is."""

    check: str
    good: bool
    found: str
    remedy: str = ""
    processes: tuple[int, ...] = ()


def examine(check: str, function: Callable[..., str], *arguments: Any) -> Finding:
    """Runs a check; whatever it raises is a finding."""
    try:
        return Finding(check, True, function(*arguments))
    except CheckFailedError as fault:
        return Finding(check, False, str(fault), fault.remedy)
    except (ConfigError, HostFailedError) as error:
        return Finding(check, False, *_sentence_and_remedy(error))
    except Exception as error:
        found = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        return Finding(check, False, found, "try the same command on another host")


def _sentence_and_remedy(error: ConfigError | HostFailedError) -> tuple[str, str]:
    """Our sentences end with the remedy, after a semicolon."""
    problems = error.problems if isinstance(error, ConfigError) else [str(error)]
    parted = [str(problem).rpartition("; ") for problem in problems]
    found = "; ".join(sentence or remedy for sentence, _, remedy in parted)
    return found, "; ".join(remedy if sentence else NO_REMEDY for sentence, _, remedy in parted)


def of_all(finding: Finding, if_different: str = "") -> list[Finding]:
    """One finding if a check is good on all hosts, else one for each fault and who has it.

    `if_different` is the remedy where all must find the same.
    """
    told = [Finding(**one) for one in everyone(asdict(finding))]
    found = [one.found for one in told]
    usual = max(found, key=found.count)
    faults: dict[tuple[str, str], list[int]] = {}
    for process, one in enumerate(told):
        if not one.good:
            faults.setdefault((one.found, one.remedy), []).append(process)
        elif if_different and one.found != usual:
            odd = f"{one.found}, where most have {usual}"
            faults.setdefault((odd, if_different), []).append(process)
    if not faults:
        return [Finding(finding.check, True, _joined(found))]
    return [
        Finding(finding.check, False, text, remedy, tuple(who) if len(who) < len(told) else ())
        for (text, remedy), who in faults.items()
    ]


def _joined(found: Sequence[str]) -> str:
    values = list(dict.fromkeys(found))
    more = f", and {len(values) - SHOWN} others" if len(values) > SHOWN else ""
    return " | ".join(values[:SHOWN]) + more
