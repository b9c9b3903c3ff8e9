'use strict';
// Images with their errors, by class and kind, or by a cell of the confusion matrix.

const PAGE = 8, LISTED = 60;

function triples(flat) {
  const found = [];
  for (let index = 0; index < flat.length; index += 3) found.push(flat.slice(index, index + 3));
  return found;
}

// Kind, class and number of the errors of an image: as counted, or of a picture at the chosen score.
function errorCounts(data, row, picture, cut) {
  if (cut === null || !picture) return triples(row[4]);
  const counts = new Map();
  for (const {kind, label} of errorsAt(data, picture, cut)) counts.set(kind * data.classes.length + label, (counts.get(kind * data.classes.length + label) || 0) + 1);
  return [...counts].sort((a, b) => a[0] - b[0]).map(([key, value]) => [Math.floor(key / data.classes.length), key % data.classes.length, value]);
}

function images(data, label, state) {
  const {kind, cell, cut} = state;
  const pictures = new Map(data.pictures.map((picture) => [picture.image, picture]));
  const fits = ([of, klass]) => !cell && (kind < 0 || of === kind) && (label < 0 || klass === label);
  const inCell = (row) => triples(row[6]).filter(([a, b]) => a === cell[0] && b === cell[1]).reduce((sum, each) => sum + each[2], 0);
  const rows = data.images.map((row, index) => ({row, index, picture: pictures.get(index), errors: errorCounts(data, row, pictures.get(index), cut)}))
    .filter(({row, errors: list}) => (cell ? inCell(row) > 0 : list.some(fits) || (kind < 0 && (label < 0 || row[5].includes(label)))));
  const worse = (a, b) => (a.row[1] ?? 2) - (b.row[1] ?? 2);
  const most = (each) => (cell ? inCell(each.row) : each.errors.filter(fits).reduce((sum, error) => sum + error[2], 0));
  const orders = {worst: worse, best: (a, b) => (b.row[1] ?? -1) - (a.row[1] ?? -1), most: (a, b) => most(b) - most(a) || worse(a, b)};
  rows.sort(orders[state.order]);
  const shown = rows.filter((each) => each.picture), others = rows.filter((each) => !each.picture);
  const outlined = cell || kind >= 0 || label >= 0;
  const outlinedOf = (picture, what) => {
    if (!outlined) return [];
    const boxes = cell ? boxesOfCell(data, picture, cell) : errorsAt(data, picture, cut).filter((each) => fits([each.kind, each.label]));
    return boxes.filter((each) => what.found || each.score === null);
  };
  const list = shown.map((each) => each.picture);
  const cards = make('div', {id: 'cards'}), more = make('button', {type: 'button', id: 'more'}, 'Show more');
  let next = 0;
  const add = (count) => {
    const from = next;
    shown.slice(from, from + count).forEach((each, index) =>
      cards.append(card(data, each, outlined && fits, outlinedOf, cut, (what) => enlarge(data, list, from + index, what, cut, outlinedOf))));
    next += count;
    state.listed = next;
    more.hidden = next >= shown.length;
  };
  more.addEventListener('click', () => add(PAGE));
  add(Math.max(PAGE, state.keepListed ? state.listed : 0));
  const at = cut === null ? '' : `, counted at a score of ${share(data.cut.threshold)}`;
  return [
    make('p', {class: 'hint'}, `Detections with a score of ${share(cut ?? data.cut.threshold)} or more. Quality is 1 − LRP of the image at ${share(data.cut.threshold)}: 1 if every gt box is found exactly without false positives. ` +
      'Softer edges are less certain. Choose a kind, a class or a cell of the confusion matrix to outline its boxes; click a picture to enlarge it.'),
    filters(data, label, state, rows.length, shown.length), cards, more,
    others.length ? make('details', {}, make('summary', {}, `${number(others.length)} images without a picture here${at}`),
      table([['image'], ['quality', share], ['gt boxes', number], ['found', number], [cell ? 'boxes' : 'errors', number]], others.slice(0, LISTED).map((each) =>
        [each.row[0], each.row[1], each.row[2], each.row[3], most(each)]), {label: 'Images without a picture'}),
      others.length > LISTED ? make('p', {class: 'hint'}, `and ${number(others.length - LISTED)} more`) : null) : null,
  ];
}

function filters(data, label, state, count, pictured) {
  const option = (value, text, chosen) => make('option', {value, selected: chosen ? '' : null}, text);
  const pick = (id, text, options, change) => make('label', {}, `${text} `, make('select', {id, onchange: (event) => { change(event.target.value); state.update('images'); }}, options));
  return make('div', {class: 'filters'},
    pick('kind', 'Error', [option(-1, 'any or none', state.kind < 0), ...data.kinds.map((kind, index) => option(index, kind, state.kind === index))],
      (value) => Object.assign(state, {kind: Number(value), cell: null})),
    make('label', {}, 'Class ', make('select', {id: 'class-here', onchange: (event) => state.choose(Number(event.target.value))},
      [option(-1, 'all', label < 0), ...data.classes.map((name, index) => option(index, name, label === index))])),
    pick('order', 'First', [['worst', 'the worst'], ['best', 'the best'], ['most', state.cell ? 'most of these' : 'most errors']].map(([value, text]) => option(value, text, state.order === value)), (value) => { state.order = value; }),
    state.cell ? make('button', {type: 'button', id: 'cell', onclick: () => state.showCell(null)}, `${cellPhrase(data, state.cell)} ✕`) : null,
    make('output', {id: 'found', role: 'status'}, `${number(count)} images, ${number(pictured)} with pictures`));
}

function card(data, each, fits, outlinedOf, cut, open) {
  const {row, errors: list, picture} = each;
  const chips = list.map((error) => make('li', {class: fits && fits(error) ? 'on' : null},
    make('span', {class: 'dot', style: `background:${data.colours[error[1]]}`}), `${error[2]} ${data.kinds[error[0]]}: ${data.classes[error[1]]}`));
  const panel = (title, what) => make('figure', {class: 'panel'},
    make('button', {type: 'button', class: 'open', title: 'Enlarge', onclick: () => open(what)}, scene(data, picture, what, cut, outlinedOf(picture, what))),
    make('figcaption', {}, title));
  return make('article', {class: 'card'},
    make('h3', {}, `${row[0]} · quality ${share(row[1])} · ${row[3]} of ${row[2]} found`),
    make('div', {class: 'panels'}, panel('ground truth', {truths: true, found: false, soft: true}), panel('prediction', {truths: false, found: true, soft: true})),
    make('ul', {class: 'chips'}, chips.length ? chips : make('li', {}, 'no errors')));
}
