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
  ['dataset', 'Data', dataset],
  ['images', 'Images', images],
];

(function start() {
  const data = JSON.parse(document.getElementById('data').textContent);
  const SECTIONS = ALL_SECTIONS.filter(([id]) => data.sections.includes(id));
  const find = (id) => document.getElementById(id);
  const state = {label: -1, kind: -1, cell: null, cut: null, order: 'worst', listed: 0, keepListed: false, update, choose, showKind, showCell};
  const bodies = {};
  let waiting = 0;  // the pictures' turn after the slider

  function update(...names) {
    for (const [id, , build] of SECTIONS) {
      if (names.length && !names.includes(id)) continue;
      const focused = document.activeElement && bodies[id].contains(document.activeElement) ? document.activeElement.id : '';
      bodies[id].replaceChildren(...build(data, state.label, state).filter(Boolean));
      if (focused && find(focused)) find(focused).focus();
    }
  }
  function choose(label) {
    Object.assign(state, {label, cell: null});
    find('class').value = String(label);
    update('summary', 'precision', 'reliability', 'cuts', 'errors', 'confusion', 'dataset', 'images');
  }
  function showImages(change, focused) {
    clearTimeout(waiting);
    Object.assign(state, change, {order: 'most'});
    update('images');
    find('images').scrollIntoView();
    find(focused).focus({preventScroll: true});
  }
  function showKind(kind) {
    showImages({kind, cell: null}, 'kind');
  }
  // Cells are counted at the common threshold.
  function showCell(cell) {
    if (state.cut !== null) setCut(null);
    showImages({cell, kind: -1}, cell ? 'cell' : 'kind');
  }
  function setCut(cut) {
    Object.assign(state, {cut, cell: null});
    const value = cut ?? data.cut.threshold ?? 0;
    if (cut === null) find('cut').value = String(value);
    find('cut').setAttribute('aria-valuetext', share(value));
    find('cut-value').textContent = share(value);
    find('best').disabled = cut === null;
    update('summary', 'errors');
    clearTimeout(waiting);  // pictures take longer to draw than the slider to move
    waiting = setTimeout(() => { state.keepListed = true; update('images'); state.keepListed = false; }, 200);
  }

  find('title').textContent = data.title;
  find('counts').textContent = data.counts.filter((pair) => pair[1]).map(([name, value]) => `${number(value)} ${name}`).join(' · ');
  find('facts').append(...data.facts.flatMap(([name, value]) => [make('dt', {}, name), make('dd', {}, value)]));
  find('class').append(make('option', {value: -1}, 'all'), ...data.classes.map((name, index) => make('option', {value: index}, name)));
  find('class').addEventListener('change', (event) => choose(Number(event.target.value)));
  if (data.sections.includes('images')) {
    find('choices').append(make('label', {id: 'score'}, 'Score ',
      make('input', {type: 'range', id: 'cut', min: 0.05, max: 1, step: 0.01, oninput: (event) => setCut(Number(event.target.value))}), make('output', {id: 'cut-value', for: 'cut'})),
    make('button', {type: 'button', id: 'best', 'aria-label': 'Back to the score with the best F1 over all classes', title: 'Back to the score with the best F1', onclick: () => setCut(null)}, '↺'));
  }
  for (const [id, title] of SECTIONS) {
    find('nav').append(make('a', {href: `#${id}`}, title));
    bodies[id] = make('div');
    find('main').append(make('section', {id, 'aria-labelledby': `${id}-title`}, make('h2', {id: `${id}-title`}, title), bodies[id]));
  }
  // Headings that are jumped to stay clear of the bar.
  new ResizeObserver(() => { document.documentElement.style.scrollPaddingTop = `${find('bar').offsetHeight + 8}px`; }).observe(find('bar'));
  if (find('cut')) setCut(null);
  clearTimeout(waiting);
  update();
  document.documentElement.dataset.ready = 'yes';
})();
