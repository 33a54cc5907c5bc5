"""The style sheet of the HTML report: light, dark, print and phone."""

STYLE = """\
:root {
  --ink: #1c2024; --soft: #5b636b; --line: #e1e4e8; --paper: #ffffff; --tint: #f4f6f8;
  --accent: #0b6e99; --accent-rgb: 11, 110, 153; --warn: #9a3412; --warn-tint: #fff4ed;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e8ea; --soft: #a0a8b0; --line: #30363c; --paper: #15181b; --tint: #1e2226;
    --accent: #6cc3ea; --accent-rgb: 108, 195, 234; --warn: #ffb68a; --warn-tint: #33211a;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%; overflow-wrap: break-word;
}
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
p, ul { max-width: 44rem; }
ul { padding-left: 1.25rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; margin: 0; }
h2 {
  font-size: 1.3rem; line-height: 1.3; letter-spacing: -.01em;
  margin: 3.5rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--line);
}
h2 a { color: inherit; text-decoration: none; }
h2 a:hover::after, h2 a:focus::after { content: " #"; color: var(--soft); }
h3 { font-size: .95rem; margin: 2rem 0 .5rem; }
.subtitle { color: var(--soft); margin: .4rem 0 2rem; }
.lead { font-size: 1.08rem; border-left: 3px solid var(--accent); padding-left: 1.1rem; }
.warning {
  background: var(--warn-tint); color: var(--warn); border-radius: 6px; padding: .7rem 1rem;
}
ul.warning { padding-left: 2.2rem; }
.contents { background: var(--tint); border-radius: 6px; padding: .9rem 1.1rem; margin: 2rem 0; }
.contents ul {
  list-style: none; margin: 0; padding: 0; max-width: none; font-size: .875rem;
  columns: 15rem; column-gap: 2rem;
}
.contents li { break-inside: avoid; }
.contents a { color: var(--accent); text-decoration: none; }
.contents a:hover { text-decoration: underline; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font-size: .88em; overflow-wrap: anywhere; }
th code { overflow-wrap: inherit; }
pre { background: var(--tint); border-radius: 6px; padding: .8rem 1rem; }
pre code { white-space: pre-wrap; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr));
  gap: 1.25rem 2rem; margin: 2rem 0;
}
.facts dt { color: var(--soft); font-size: .82rem; }
.facts dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; line-height: 1.35; }
.facts code { font-size: .75em; }
.facts small { display: block; font-size: .82rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem 0 .38rem 1.3rem; text-align: right; white-space: nowrap; }
thead th { white-space: normal; }
td.aside { padding-left: .4rem; text-align: left; color: var(--soft); font-size: .8rem; }
td.shaded { padding-right: .4rem; background: rgba(var(--accent-rgb), calc(.45 * var(--shade))); }
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
table.textual { width: 100%; }
.textual thead th { text-align: left; }
.textual tbody th, .textual td {
  text-align: left; vertical-align: top; white-space: normal; overflow-wrap: anywhere;
}
.textual tbody th { position: static; min-width: 9rem; max-width: 26rem; }
.textual td { min-width: 5rem; }
small { color: var(--soft); font-size: .92em; font-weight: 400; }
.note, figcaption { color: var(--soft); font-size: .85rem; line-height: 1.5; max-width: 44rem; }
.note { margin: .6rem 0 0; }
figure { margin: 2rem 0; }
figure .scroll { background: #fff; border-radius: 6px; }
img { display: block; width: 100%; min-width: 38rem; height: auto; }
figcaption { margin-top: .5rem; }
@media screen and (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.6rem; }
  h2 { margin-top: 2.5rem; }
  /* A name may take a good part of the width, and breaks its lines beyond. */
  tbody th { white-space: normal; overflow-wrap: break-word; max-width: 42vw; }
  tbody th.long, tbody th.long code { overflow-wrap: anywhere; }
  tbody th.long { min-width: 9rem; }
  th, td { padding-left: .9rem; }
  /* What is read, and not compared down a column: a card for each row. */
  table.textual, .textual tbody, .textual tr, .textual tbody th, .textual td {
    display: block; width: auto; min-width: 0; max-width: none;
  }
  .textual thead {
    position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden;
  }
  .textual tbody tr {
    border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0; padding: .5rem .8rem;
  }
  .textual tbody tr + tr > * { border-top: 0; }
  .textual tbody th { font-weight: 500; padding: .1rem 0 .3rem; }
  .textual td { padding: .1rem 0; }
  .textual td:empty { display: none; }
  .textual td::before { content: attr(data-label) ": "; color: var(--soft); }
}
@media print {
  :root {
    --ink: #000; --soft: #444; --line: #ccc; --paper: #fff; --tint: #f2f2f2; --accent: #000;
    --accent-rgb: 90, 90, 90; --warn: #000; --warn-tint: #eee;
  }
  @page { margin: 1.5cm; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  h2 { margin-top: 2rem; }
  h2, h3 { break-after: avoid; }
  figure, tr, .facts, .lead, .warning { break-inside: avoid; }
  thead { display: table-header-group; }
  .contents { display: none; }
  table { font-size: 7pt; width: 100%; }
  th, td { padding: .2rem 0 .2rem .5rem; }
  td.aside { font-size: 6.5pt; padding-left: .2rem; white-space: normal; }
  tbody th { position: static; white-space: normal; overflow-wrap: anywhere; }
  .shaded, tr.chosen > *, .warning { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  img { min-width: 0; }
  .scroll { overflow: visible; }
}
"""
