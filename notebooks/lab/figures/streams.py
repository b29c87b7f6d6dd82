"""What happens to a stream on its way: cut into chunks anywhere, held back by what stands between, cut off for a while.

chunks                  ─▶ cut_lines   ─▶ each byte in a box, and the lines that the bytes make
sent, came, while open  ─▶ proxy_lanes ─▶ a lane for each way: when an update was published, when it arrived
pauses, runs, history   ─▶ missed      ─▶ how many updates a pause costs, and up to how many the history makes good
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from lab.bench.result import count
from lab.figures.style import GREY, INK, OTHER, Picture, blank, letters, style

CR, LF = 0x0D, 0x0A
ENDS = {CR: "CR", LF: "LF"}
GAP = 1.2  # between two chunks, in boxes
LIGHT = "#e4e4e4"


def cut_lines(chunks: Sequence[bytes]) -> Picture:
    """Every byte of a stream in a box, chunk by chunk, and below them the lines that they make.

    An LF that only completes the CR before it ends no line of its own, and is crossed out.
    """
    look = style("SSE")
    halves = _second_halves(chunks)
    title = f"CR, LF or both end a line, in one chunk or over two: {count(_lines(chunks, halves), 'line')} here"
    alt = (
        f"{len(chunks)} chunks of a stream, byte by byte: {'; '.join(map(_spelt, chunks))}. {len(halves)} LF "
        "at the beginning of a chunk is crossed out: it belongs to the CR that ended the chunk before."
    )
    picture, axes = blank(title, "", "", height=1.7, alt=alt)
    x, line, begin, n = 0.0, "", 0.0, 0
    for number, chunk in enumerate(chunks, 1):
        axes.text(x + len(chunk) / 2, 1.15, f"chunk {number}", ha="center", color=GREY, size=11)
        for place, byte in enumerate(chunk):
            half = (number - 1, place) in halves
            axes.add_patch(Rectangle((x, 0), 1, 1, facecolor=LIGHT if byte in ENDS else "white", edgecolor=GREY))
            axes.text(x + 0.5, 0.5, ENDS.get(byte, chr(byte)), ha="center", va="center", size=9, color=INK)
            if half:
                axes.plot([x, x + 1], [0, 1], color=INK, linewidth=1.5)
            if not line and byte not in ENDS:
                begin = x
            if byte in ENDS and not half:
                axes.plot([begin, x + 1], [-0.18] * 2, color=look.color)
                n += 1
                axes.text(
                    (begin + x + 1) / 2, -0.35, f"line {n}: {line}", ha="center", va="top", color=letters(look.color)
                )
                line = ""
            elif not half and byte not in ENDS:
                line += chr(byte)
            x += 1
        x += GAP
    axes.set(xlim=(-0.2, x - GAP + 0.2), ylim=(-1, 1.6))
    axes.set_axis_off()
    return picture


def _second_halves(chunks: Sequence[bytes]) -> set[tuple[int, int]]:
    """Where (chunk, place in it) an LF follows a CR."""
    flat = [(chunk, place, byte) for chunk, text in enumerate(chunks) for place, byte in enumerate(text)]
    return {(chunk, place) for (*_, before), (chunk, place, byte) in pairwise(flat) if before == CR and byte == LF}


def _lines(chunks: Sequence[bytes], halves: set[tuple[int, int]]) -> int:
    return sum(byte in ENDS for chunk in chunks for byte in chunk) - len(halves)


def _spelt(chunk: bytes) -> str:
    return " ".join(ENDS.get(byte, chr(byte)) for byte in chunk)


def proxy_lanes(
    sent: Sequence[float], came: Mapping[str, Sequence[float]], while_open: Mapping[str, int], program: str
) -> Picture:
    """A lane for each way through a proxy: published above, arrived below, joined; in seconds from the first update.

    `sent` and `came` are moments of one clock (s), `while_open` says how many came before the stream ended, and
    `program` which proxy it was.
    """
    look = style("SSE")
    held = [name for name, arrived in while_open.items() if not arrived]
    passed = [name for name in came if name not in held]
    title = f"Held back until the stream ends: {'; '.join(held) or 'nothing'}"
    alt = (
        f"{len(came)} lanes of {len(sent)} updates through {program}. All together at the end: "
        f"{'; '.join(held) or 'none'}. Each as it is published: {'; '.join(passed) or 'none'}."
    )
    picture, axes = blank(title, "time since the first update (s)", "", height=4.4, alt=alt, tag=f"LIVE, {program}")
    start = sent[0] if sent else 0.0
    published = [at - start for at in sent]
    for lane, moments in enumerate(came.values()):
        arrived = [at - start for at in moments]
        axes.plot(published, [lane - 0.25] * len(published), "v", color="0.4", markersize=5)
        axes.plot(arrived, [lane] * len(arrived), look.marker, linestyle="", color=look.color, markersize=look.size)
        for begin, end in zip(published, arrived, strict=False):  # what never came has no end
            axes.plot([begin, end], [lane - 0.25, lane], color=look.color, linewidth=0.8)
    axes.set(yticks=range(len(came)), ylim=(len(came) - 0.5, -0.7))
    axes.set_yticklabels(came)
    return picture


def missed(
    law: tuple[Sequence[float], Sequence[float]],
    without: Mapping[float, int],
    with_id: Mapping[float, int],
    *,
    kept: int,
) -> Picture:
    """Updates missed against the pause (s), without an id and with one, where the server keeps so many of the last.

    `law` is a line of (pauses, updates); what `with_id` has, the title speaks of.
    """
    [(pause, lost)] = with_id.items()
    title = f"A pause of {pause:g} s, {kept} kept: {lost} missed with the id, {without[pause]} without"
    counts = ", ".join(f"{number} at {at:g} s" for at, number in sorted(without.items()))
    alt = (
        f"Updates missed after a cut against the pause, VIRTUAL. Without the id: {counts}. The server keeps the last "
        f"{kept}, a level line: with the id, {lost} are missed after {pause:g} s."
    )
    picture, axes = blank(title, "pause before asking again (s)", "updates missed", alt=alt, tag="VIRTUAL")
    axes.plot(*law, "k--", linewidth=1.2, label="law, without the id")
    axes.plot(list(without), list(without.values()), "o", color=OTHER.color, label="without the id")
    axes.plot([pause], [lost], style("SSE").marker, color=style("SSE").color, markersize=12, label="with the id")
    axes.axhspan(0, kept, color=LIGHT, zorder=0, linewidth=0)
    axes.text(0, kept, f"the server keeps {kept}", va="bottom", color=GREY)
    axes.axvline(pause, color=GREY, linewidth=1, zorder=0)
    axes.set_ylim(-1, 1.15 * max(kept, *without.values(), *law[1]))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.95), fontsize=10.5)
    return picture
