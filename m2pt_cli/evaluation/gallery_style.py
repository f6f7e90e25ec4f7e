"""The look and the filters of the gallery page: plain CSS and JavaScript, nothing fetched."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --line: #8884; --right: #1a7f37; --wrong: #cf222e; --failed: #9a6700; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
.scores th, .scores td { border: 1px solid var(--line); padding: .25rem .6rem; text-align: right; font-size: .85rem; }
pre { overflow-x: auto; font-size: .8rem; border: 1px solid var(--line); padding: .75rem; }
.filters { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; position: sticky; top: 0;
  background: Canvas; padding: .5rem 0; border-bottom: 1px solid var(--line); }
select, input { font: inherit; } .note, .id { opacity: .7; font-size: .8rem; margin: .2rem 0; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem; }
article { display: flex; align-items: start; gap: .9rem; border: 1px solid var(--line); border-radius: .5rem;
  padding: .8rem; }
article[hidden] { display: none; } article > div { min-width: 0; flex: 1; overflow-wrap: anywhere; }
article img { width: 7rem; height: 7rem; object-fit: contain; background: #8882; border-radius: .3rem; flex: none;
  image-rendering: auto; }
.missing { width: 7rem; font-size: .75rem; opacity: .7; overflow-wrap: anywhere; flex: none; margin: 0; }
.question { white-space: pre-wrap; margin: .2rem 0; } .answer { margin: .2rem 0; }
article td, article th { padding: .1rem .6rem .1rem 0; text-align: left; vertical-align: top; font-size: .9rem; }
article th { font-weight: 600; } .right td { color: var(--right); } .wrong td { color: var(--wrong); }
.failed td { color: var(--failed); }
"""

SCRIPT = """
const cards = [...document.querySelectorAll('article')];
const [bench, state, words, count] = ['bench', 'state', 'words', 'count'].map(id => document.getElementById(id));
function show() {
  const wanted = words.value.trim().toLowerCase();
  let shown = 0;
  for (const card of cards) {
    const fits = (!bench.value || card.dataset.bench === bench.value)
      && (!state.value || card.dataset.states.split(' ').includes(state.value))
      && (!wanted || card.textContent.toLowerCase().includes(wanted));
    card.hidden = !fits;
    shown += fits;
  }
  count.textContent = shown + ' shown';
}
for (const field of [bench, state, words]) field.addEventListener('input', show);
show();
"""
