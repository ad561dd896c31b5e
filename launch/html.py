"""The parts that every report's page is made of. They need nothing else and run nothing."""

import base64
import html

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Latent Foundry report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }}
h1 {{ margin-bottom: 0; }} h2 {{ margin-top: 2.2rem; border-bottom: 1px solid #ddd; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .25rem .9rem .25rem 0; text-align: left;
  overflow-wrap: anywhere; }}
td:not(:first-child) {{ font-variant-numeric: tabular-nums; }}
pre {{ background: #f5f5f5; padding: .8rem; overflow-x: auto; }}
img {{ max-width: 100%; height: auto; }}
.gallery {{ display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); }}
.gallery img {{ width: 100%; image-rendering: pixelated; border: 1px solid #eee; }}
figure {{ margin: 0; }} figcaption {{ font-size: .85rem; color: #444; }}
</style></head><body>
<h1>Latent Foundry report</h1>
{body}
</body></html>
"""


def png(content: bytes, alt: str = "") -> str:
    """A picture within the page itself."""
    encoded = base64.b64encode(content).decode()
    return f'<img alt="{alt}" src="data:image/png;base64,{encoded}">'


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table of plain text, whatever signs it holds."""

    def cells(tag: str, row: tuple[str, ...]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    return f"<table>{cells('th', head)}{''.join(cells('td', row) for row in rows)}</table>"
