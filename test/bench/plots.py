"""plots.py: bars of tokens a second, as SVG: a panel for each kind of work, in it the sides by format.

The text is grey enough for light and for dark pages; where the viewer says which it is, it gets more contrast.
"""
import statistics
from xml.sax.saxutils import escape

WIDTH, LABELS, VALUES = 760, 190, 70
BAR, GAP, GROUP_GAP, PANEL_GAP = 15, 3, 9, 26
COLOURS = ["#2f81f7", "#9a8c98", "#c9ada7", "#6c757d"]  # ours first
STYLE = """
text { font: 12px -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #6e7781; }
.head { font-weight: 600; font-size: 13px; }
@media (prefers-color-scheme: light) { text { fill: #24292f; } }
@media (prefers-color-scheme: dark) { text { fill: #d0d7de; } }
"""


def text(x, y, words, anchor="start", kind=""):
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def draw_panel(out, y, title, bars, colours):
    """bars: (format, side, value). Returns the next free y."""
    out.append(text(0, y + 12, title, kind="head"))
    y += 20
    scale = (WIDTH - LABELS - VALUES) / max(value for _, _, value in bars)
    last = None
    for form, side, value in bars:
        if form != last:
            y += GROUP_GAP if last else 0
            out.append(text(0, y + 12, form))
            last = form
        width = max(1, round(value * scale, 1))
        out.append(text(LABELS - 8, y + 12, side, anchor="end"))
        out.append(f'<rect x="{LABELS}" y="{y}" width="{width}" height="{BAR}" rx="2" fill="{colours[side]}"/>')
        out.append(text(LABELS + width + 6, y + 12, number(value)))
        y += BAR + GAP
    return y + PANEL_GAP


def panels(runs, rows):
    """Title and bars of each model and work, in the order of the rows."""
    found = {}
    for model, form, work in rows:
        sides = runs.sides((model, form, work))
        for side in sorted(sides, key=lambda name: (name != "qwen", name)):
            value = statistics.median(runs.values(side, (model, form, work)))
            found.setdefault(f"{model}, {work}: tokens a second", []).append((form, side, value))
    return found


def draw(path, runs, rows):
    found = panels(runs, rows)
    sides = sorted({side for bars in found.values() for _, side, _ in bars}, key=lambda name: (name != "qwen", name))
    colours = {side: COLOURS[min(i, len(COLOURS) - 1)] for i, side in enumerate(sides)}
    out, y = [], 4
    for title, bars in found.items():
        y = draw_panel(out, y, title, bars, colours)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - PANEL_GAP + 4}" '
                    f'width="{WIDTH}" role="img" aria-label="Tokens a second">\n<style>{STYLE}</style>\n'
                    + "\n".join(out) + "\n</svg>\n")
