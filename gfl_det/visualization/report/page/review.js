'use strict';
// Goes through suspicious labels one by one; decisions stay in the browser until they are downloaded.

const CHOICES = [['keep', 'Keep the label', 'K'], ['take', 'Take the suggestion', 'T'], ['mark', 'Mark for later', 'M']];

(function start() {
  const data = JSON.parse(document.getElementById('data').textContent);
  const entries = JSON.parse(data.entries); // a text, so that no digit of a box is lost
  const find = (id) => document.getElementById(id);
  const store = `gfl-det ${data.sha256} ${entries.length}`;
  const state = {kind: '', index: 0, decisions: recall()};

  function recall() {
    try { return JSON.parse(localStorage.getItem(store)) || {}; } catch { return {}; }
  }
  function remember() {
    try { localStorage.setItem(store, JSON.stringify(state.decisions)); } catch { /* a page from a file may have no store */ }
  }
  const listed = () => entries.map((_, index) => index).filter((index) => !state.kind || entries[index].kind === state.kind);
  const at = () => Math.max(0, listed().indexOf(state.index));

  function step(by) {
    const list = listed();
    state.index = list[Math.min(list.length - 1, Math.max(0, at() + by))];
    update();
  }
  function decide(choice) {
    const list = listed(), here = list[at()];
    if (here === undefined) return;
    state.decisions[here] = choice;
    remember();
    const open = [...list.slice(at() + 1), ...list.slice(0, at())].find((index) => !state.decisions[index]);
    state.index = open === undefined ? here : open;
    update();
  }
  const panel = (title, picture, what) => make('figure', {class: 'panel'}, scene(data, picture, what, null), make('figcaption', {}, title));
  function card() {
    const list = listed(), index = list[at()];
    if (index === undefined) return [make('p', {class: 'hint'}, 'There is nothing of this kind.')];
    const entry = entries[index], picture = data.pictures[index];
    return [
      make('h2', {}, `${at() + 1} of ${list.length}: ${entry.kind}, probability ${share(entry.probability)}`),
      make('p', {id: 'sentence'}, data.sentences[index]),
      make('p', {class: 'hint'}, data.images[index][0]),
      make('div', {class: 'choices'}, CHOICES.map(([name, text, key]) => make('button', {type: 'button', id: name, 'aria-pressed': String(state.decisions[index] === name), onclick: () => decide(name)}, text, make('kbd', {}, key))),
        make('button', {type: 'button', id: 'back', onclick: () => step(-1)}, 'Back', make('kbd', {}, '←')), make('button', {type: 'button', id: 'next', onclick: () => step(1)}, 'Next', make('kbd', {}, '→'))),
      picture ? make('div', {class: 'panels'}, panel('label', picture, {truths: true, found: false, soft: true}), panel('prediction; softer edges are less certain', picture, {truths: false, found: true, soft: true})) :
        make('p', {class: 'hint'}, 'No picture: the image was not given, or is beyond --pictures.'),
    ];
  }
  function overview() {
    const row = (index) => make('tr', {class: index === state.index ? 'chosen' : null, onclick: () => { state.index = index; update(); }},
      [entries[index].kind, data.sentences[index], data.images[index][0], share(entries[index].probability), state.decisions[index] || ''].map((cell) => make('td', {}, cell)));
    return make('table', {}, make('thead', {}, make('tr', {}, ['kind', 'what', 'image', 'probability', 'decision'].map((name) => make('th', {scope: 'col'}, name)))),
      make('tbody', {}, listed().map(row)));
  }
  function update() {
    const focused = document.activeElement ? document.activeElement.id : '';
    find('one').replaceChildren(...card());
    find('all').replaceChildren(overview());
    find('progress').textContent = `${Object.keys(state.decisions).length} of ${entries.length} decided`;
    if (focused && find(focused)) find(focused).focus({preventScroll: true});
  }
  function decisions() {
    const decided = entries.map((entry, index) => ({...entry, decision: state.decisions[index]})).filter((entry) => entry.decision);
    return JSON.stringify({annotations: data.annotations, sha256: data.sha256, decisions: decided}, null, 1);
  }
  function save() {
    const link = make('a', {href: URL.createObjectURL(new Blob([decisions()], {type: 'application/json'})), download: 'decisions.json'});
    link.click();
    URL.revokeObjectURL(link.href);
  }

  find('title').textContent = data.title;
  find('counts').textContent = data.counts.map(([name, value]) => `${number(value)} ${name}`).join(' · ');
  find('kind').append(make('option', {value: ''}, 'all'), ...data.kinds.map((name) => make('option', {value: name}, name)));
  find('kind').addEventListener('change', (event) => { state.kind = event.target.value; state.index = listed()[0] ?? 0; update(); });
  find('save').addEventListener('click', save);
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === 'SELECT') return;
    const choice = CHOICES.find(([, , key]) => key.toLowerCase() === event.key.toLowerCase());
    if (choice) decide(choice[0]);
    else if (event.key === 'ArrowLeft') step(-1);
    else if (event.key === 'ArrowRight') step(1);
    else return;
    event.preventDefault();
  });
  window.decisions = decisions;
  update();
  document.documentElement.dataset.ready = 'yes';
})();
