"""The style sheet of the HTML report: light, dark, print and phone."""

STYLE = """\
:root {
  --ink: #1c2024; --soft: #5b636b; --line: #e1e4e8; --paper: #ffffff; --tint: #f4f6f8;
  --accent: #0b6e99; --warn: #9a3412; --warn-tint: #fff4ed;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e8ea; --soft: #a0a8b0; --line: #30363c; --paper: #15181b; --tint: #1e2226;
    --accent: #6cc3ea; --warn: #ffb68a; --warn-tint: #33211a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
p, ul { max-width: 44rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; margin: 0; }
h2 {
  font-size: 1.3rem; line-height: 1.3; letter-spacing: -.01em;
  margin: 3.5rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--line);
}
h3 { font-size: .95rem; margin: 2rem 0 .5rem; }
.subtitle { color: var(--soft); margin: .4rem 0 2rem; }
.lead { font-size: 1.08rem; border-left: 3px solid var(--accent); padding-left: 1.1rem; }
.warning {
  background: var(--warn-tint); color: var(--warn); border-radius: 6px; padding: .7rem 1rem;
}
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font-size: .88em; overflow-wrap: anywhere; }
pre { background: var(--tint); border-radius: 6px; padding: .8rem 1rem; }
pre code { white-space: pre-wrap; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: 1.25rem 2rem; margin: 2rem 0;
}
.facts dt { color: var(--soft); font-size: .82rem; }
.facts dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; line-height: 1.35; }
.facts small { display: block; font-size: .82rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem 0 .38rem 1.3rem; text-align: right; white-space: nowrap; }
thead th { white-space: normal; }
td.aside { padding-left: .4rem; text-align: left; color: var(--soft); font-size: .8rem; }
th:first-child { text-align: left; padding-left: 0; font-weight: 400; }
td:last-child, th:last-child { padding-right: .4rem; }
thead th, thead th:first-child {
  color: var(--soft); font-weight: 500; font-size: .8rem; vertical-align: bottom;
  border-bottom: 1px solid var(--soft);
}
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody th { position: sticky; left: 0; background: var(--paper); }
tr.chosen > * { background: var(--tint); font-weight: 600; }
tr.chosen td.aside { font-weight: 400; }
tr.chosen th { box-shadow: inset 3px 0 var(--accent); padding-left: .7rem; }
tr.reference > * { color: var(--soft); font-style: italic; }
.textual thead th { text-align: left; }
.textual td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
small { color: var(--soft); font-size: .92em; font-weight: 400; }
.note, figcaption { color: var(--soft); font-size: .85rem; line-height: 1.5; max-width: 44rem; }
.note { margin: .6rem 0 0; }
figure { margin: 2rem 0; }
figure .scroll { background: #fff; border-radius: 6px; }
img { display: block; width: 100%; min-width: 38rem; height: auto; }
figcaption { margin-top: .5rem; }
@media (max-width: 34rem) {
  main { padding-top: 1.5rem; }
  h1 { font-size: 1.6rem; }
}
@media print {
  :root {
    --ink: #000; --soft: #444; --line: #ccc; --paper: #fff; --tint: #f2f2f2; --accent: #000;
    --warn: #000; --warn-tint: #eee;
  }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  h2 { margin-top: 2rem; }
  h2, h3 { break-after: avoid; }
  figure, tr, .facts, .lead { break-inside: avoid; }
  table { font-size: 7.5pt; }
  th, td { padding: .2rem 0 .2rem .6rem; }
  img { min-width: 0; }
  .scroll { overflow: visible; }
}
"""
