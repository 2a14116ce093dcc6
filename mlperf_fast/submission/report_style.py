"""The page's style sheet. The variables are also the colours of the pictures (report_svg.py).

Series: the colours of Okabe and Ito (2008), which colour-blind readers tell apart, darkened on white and lightened on
black until each has a contrast of 3 to its ground.
"""

LIGHT = """
  --ink: #1b1f24; --quiet: #57606a; --grid: #e4e8ec; --paper: #ffffff; --panel: #f6f8fa; --line: #d0d7de;
  --link: #0b57a4; --target: #a3195b; --band: #dfe9e2; --good: #12693a; --bad: #b3261e; --warn: #7a5200;
  --good-ground: #e2f3e8; --bad-ground: #fbe6e4; --warn-ground: #fbf0d5;
  --series-1: #0072b2; --series-2: #c84e00; --series-3: #00795a; --series-4: #a0528a; --series-5: #966500;
  --series-6: #2a8cc4; --series-7: #5c636b;
  --phase-1: #b6bec7; --phase-2: #e0912f; --phase-3: #2a6f9e; --phase-4: #66b59a;
  --black: #1b1f24; --white: #ffffff; --board: #efdfbd;
"""
DARK = """
  --ink: #e6edf3; --quiet: #9ba6b1; --grid: #2b323a; --paper: #12161b; --panel: #1a2027; --line: #38414b;
  --link: #7cc0ff; --target: #ff8fc0; --band: #24362c; --good: #6fdc9a; --bad: #ff9a92; --warn: #f2c661;
  --good-ground: #16301f; --bad-ground: #3a1c1a; --warn-ground: #332a12;
  --series-1: #56b4e9; --series-2: #f28e4b; --series-3: #3cc79b; --series-4: #e5a3c9; --series-5: #f0c04a;
  --series-6: #9ad1f5; --series-7: #b4bcc4;
  --phase-1: #5b6570; --phase-2: #f0a64b; --phase-3: #4c9fd6; --phase-4: #7fd4b5;
  --black: #05070a; --white: #e6edf3; --board: #4a3f2b;
"""

STYLE = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
* {{ box-sizing: border-box }}
html {{ font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  color: var(--ink); background: var(--paper); -webkit-text-size-adjust: 100% }}
body {{ margin: 0 auto; max-width: 1040px; padding: 0 20px 48px; overflow-wrap: anywhere }}
h1, h2, h3, h4 {{ line-height: 1.2; text-wrap: balance }}
h1 {{ font-size: 1.75rem; margin: 28px 0 4px; letter-spacing: -.01em }}
h2 {{ font-size: 1.4rem; margin: 56px 0 4px; padding-top: 16px; border-top: 2px solid var(--ink) }}
h2.first {{ border: 0; margin-top: 20px; padding: 0 }}
h3 {{ font-size: 1.1rem; margin: 32px 0 8px }}
h4 {{ font-size: .95rem; margin: 24px 0 4px }}
p {{ margin: 4px 0 12px; max-width: 72ch }}
a {{ color: var(--link) }}
:focus-visible {{ outline: 3px solid var(--link); outline-offset: 2px; border-radius: 2px }}
.skip {{ position: absolute; left: -9999px }}
.skip:focus {{ left: 12px; top: 12px; padding: 8px 12px; background: var(--paper); z-index: 1 }}
.quiet, figcaption, caption {{ color: var(--quiet) }}
.lead {{ font-size: 1.05rem }}
.badge {{ display: inline-block; padding: 1px 8px; border-radius: 4px; font-size: .85rem; font-weight: 600;
  white-space: nowrap }}
.good {{ color: var(--good); background: var(--good-ground) }}
.bad {{ color: var(--bad); background: var(--bad-ground) }}
.none {{ color: var(--quiet); background: var(--panel) }}
.warn {{ color: var(--warn); background: var(--warn-ground) }}
.scroll {{ overflow-x: auto; margin: 8px 0 16px }}
table {{ border-collapse: collapse; width: 100%; font-size: .9rem }}
caption {{ text-align: left; font-size: .85rem; padding-bottom: 4px }}
th, td {{ text-align: left; padding: 6px 16px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal }}
thead th {{ font-weight: 600; color: var(--quiet); font-size: .8rem; white-space: nowrap; vertical-align: bottom }}
th.number, td.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
th:last-child, td:last-child {{ padding-right: 0 }}
tbody th {{ font-weight: 600 }}
.summary td, .summary th {{ padding-top: 8px; padding-bottom: 8px }}
.summary .score {{ font-size: 1.1rem; font-weight: 700 }}
.summary td:nth-child(3), .summary th:nth-child(3) {{ text-align: left; padding-left: 16px }}
.close {{ margin: 0; font-weight: 600 }}
.why {{ margin: 4px 0 16px; padding-left: 20px; font-size: .9rem }}
.small {{ font-size: .8rem; font-weight: 400; color: var(--quiet); display: block; white-space: normal }}
nav ul {{ list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; margin: 8px 0 }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 4px 20px;
  margin: 12px 0 20px }}
.tiles div {{ border-top: 1px solid var(--line); padding-top: 6px }}
.tiles dt {{ font-size: .8rem; color: var(--quiet) }}
.tiles dd {{ margin: 0; font-size: 1.05rem; font-weight: 650; white-space: nowrap;
  font-variant-numeric: tabular-nums; line-height: 1.3 }}
.pictures {{ display: flex; flex-wrap: wrap; gap: 16px 40px; margin: 8px 0 }}
.narrow {{ gap: 16px 32px }}
figure {{ margin: 0; flex: 0 1 480px; min-width: 0 }}
.beside {{ flex: 1 1 312px; min-width: 0 }}
.beside .scroll {{ margin-top: 0 }}
.beside figure {{ max-width: 312px }}
.narrow figure {{ flex-basis: 312px }}
figcaption {{ font-size: .85rem; margin-bottom: 4px }}
figcaption strong {{ color: var(--ink); display: block; font-size: .95rem }}
.picture {{ display: block; width: 100%; height: auto; overflow: visible }}
.picture * {{ stroke-linejoin: round; stroke-linecap: butt }}
/* A rim in the ground's colour, so that text over lines can be read. */
.picture text {{ paint-order: stroke; stroke: var(--paper); stroke-width: 3px }}
.verdicts {{ margin: 0 0 12px; padding: 0; list-style: none }}
.verdicts li {{ display: grid; grid-template-columns: 7.5em 1fr; gap: 0 12px; padding: 6px 0;
  border-bottom: 1px solid var(--line) }}
.verdicts p {{ margin: 0 }}
details {{ border-bottom: 1px solid var(--line); padding: 6px 0 }}
summary {{ cursor: pointer; font-weight: 500 }}
details ul {{ margin: 8px 0; padding-left: 20px; font-size: .9rem }}
code {{ font: .88em ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace }}
footer {{ margin-top: 56px; border-top: 1px solid var(--line); padding-top: 12px; font-size: .85rem;
  color: var(--quiet) }}
@media (max-width: 560px) {{
  body {{ padding: 0 14px 32px }}
  h1 {{ font-size: 1.4rem }}
  .verdicts li {{ grid-template-columns: 1fr }}
  th, td {{ padding-right: 10px }}
  .summary th .small {{ max-width: 9em; overflow-wrap: anywhere }}
  .summary .score {{ font-size: 1rem }}
  .summary td:nth-child(3), .summary th:nth-child(3) {{ padding-left: 2px }}
}}
@media print {{
  :root {{ color-scheme: light; {LIGHT} }}
  @page {{ margin: 14mm }}
  html {{ font-size: 10.5pt; -webkit-print-color-adjust: exact; print-color-adjust: exact }}
  body {{ max-width: none; padding: 0 }}
  .skip, nav {{ display: none }}
  .scroll {{ overflow: visible }}
  table {{ font-size: 8.5pt }}
  .tiles {{ grid-template-columns: repeat(7, auto); gap: 4px 10px }}
  .tiles dd {{ font-size: 10pt }}
  .pictures, .narrow {{ gap: 8px 16px }}
  figure {{ flex: 0 0 calc(50% - 8px) }}
  .narrow figure {{ flex: 0 0 calc(33.3% - 11px) }}
  .beside {{ flex: 0 0 calc(50% - 8px) }}
  th, td {{ padding: 3px 8px 3px 0 }}
  h2 {{ break-before: page; margin-top: 0; border-top: 0 }}
  h2.first {{ break-before: auto }}
  h2, h3, h4, summary {{ break-after: avoid }}
  figure, tr, .tiles, .verdicts li {{ break-inside: avoid }}
  a {{ color: inherit; text-decoration: none }}
  details::details-content {{ display: block; content-visibility: visible; block-size: auto }}
}}
"""
