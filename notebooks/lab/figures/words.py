"""What a figure of runs says: its title and its alternative text, from the numbers."""

from collections.abc import Sequence

from lab.bench.result import Run, count, seconds


def worst(runs: Sequence[Run], q: float, what: str) -> str:
    """A title's finding: who loses most, or when a share `q` of the deliveries has come, slowest and others."""
    if not any(run.expected for run in runs):
        return "No update was published"
    slow = max(runs, key=lambda run: (run.lost, run.delay(q)))
    if slow.lost:
        return f"{upper(slow.label)}: {percent(slow.lost, slow.expected)} of the deliveries never come"
    text = f"{upper(slow.label)}: {what} {seconds(slow.delay(q))}"
    match [run for run in runs if run is not slow]:
        case []:
            return text
        case [other]:
            return f"{text}; {other.label}: {seconds(other.delay(q))}"
        case others:
            return f"{text}, the others' {seconds(max(run.delay(q) for run in others))} or less"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"


def listed(runs: Run | Sequence[Run]) -> Sequence[Run]:
    listed = [runs] if isinstance(runs, Run) else list(runs)
    if not listed:
        raise ValueError("there is no run to draw")
    return listed


def mode_of(runs: Sequence[Run]) -> str:
    mode = ", ".join(dict.fromkeys(run.mode for run in runs))
    return f"{mode}; machine too busy to be believed" if any(run.busy for run in runs) else mode


def upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def in_words(run: Run) -> str:
    """The run in one sentence, for those who hear the figure."""
    asked = f"{count(run.requests, 'request')}, {run.wasted:,} of them for nothing"
    asked += f", {run.still_open:,} still open" if run.still_open else ""
    came = f"{run.expected - run.lost:,} of {run.expected:,} deliveries came"
    late = f", median delay {seconds(run.delay(0.5))}, 95 % within {seconds(run.delay(0.95))}" if run.expected else ""
    return f"{upper(run.label)}, {count(run.clients, 'client')}: {asked}; {came}{late}."
