'use strict';
// Assembles the sections, and redraws them when a class is selected.

const ALL_SECTIONS = [
  ['summary', 'Summary', summary],
  ['precision', 'Precision and recall', precision],
  ['reliability', 'Reliability', reliability],
  ['cuts', 'Score thresholds per class', cuts],
  ['uncertainty', 'Uncertainty', uncertainty],
  ['errors', 'Errors', errors],
  ['confusion', 'Confusion', confusion],
  ['training', 'Training', training],
  ['images', 'Images', images],
];

(function start() {
  const data = JSON.parse(document.getElementById('data').textContent);
  const SECTIONS = ALL_SECTIONS.filter(([id]) => data.sections.includes(id));
  const find = (id) => document.getElementById(id);
  const state = {label: -1, kind: -1, order: 'worst', update, choose, showKind};
  const bodies = {};

  function update(...names) {
    for (const [id, , build] of SECTIONS) {
      if (names.length && !names.includes(id)) continue;
      const focused = document.activeElement && bodies[id].contains(document.activeElement) ? document.activeElement.id : '';
      bodies[id].replaceChildren(...build(data, state.label, state).filter(Boolean));
      if (focused && find(focused)) find(focused).focus();
    }
  }
  function choose(label) {
    state.label = label;
    find('class').value = String(label);
    update('summary', 'precision', 'reliability', 'cuts', 'errors', 'confusion', 'images');
  }
  function showKind(kind) {
    Object.assign(state, {kind, order: 'most'});
    update('images');
    find('images').scrollIntoView();
    find('kind').focus({preventScroll: true});
  }

  find('title').textContent = data.title;
  find('counts').textContent = data.counts.filter((pair) => pair[1]).map(([name, value]) => `${number(value)} ${name}`).join(' · ');
  find('facts').append(...data.facts.flatMap(([name, value]) => [make('dt', {}, name), make('dd', {}, value)]));
  find('class').append(make('option', {value: -1}, 'all'), ...data.classes.map((name, index) => make('option', {value: index}, name)));
  find('class').addEventListener('change', (event) => choose(Number(event.target.value)));
  for (const [id, title] of SECTIONS) {
    find('nav').append(make('a', {href: `#${id}`}, title));
    bodies[id] = make('div');
    find('main').append(make('section', {id, 'aria-labelledby': `${id}-title`}, make('h2', {id: `${id}-title`}, title), bodies[id]));
  }
  update();
  document.documentElement.dataset.ready = 'yes';
})();
