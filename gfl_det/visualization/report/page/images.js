'use strict';
// Images with their errors, by class and kind.

const PAGE = 8, LISTED = 60;

function errorsOf(row) {
  const found = [];
  for (let index = 0; index < row[4].length; index += 3) found.push(row[4].slice(index, index + 3));
  return found;
}

function images(data, label, state) {
  const fits = ([kind, of]) => (state.kind < 0 || kind === state.kind) && (label < 0 || of === label);
  const rows = data.images.map((row, index) => ({row, index, errors: errorsOf(row)})).filter(({row, errors: list}) =>
    list.some(fits) || (state.kind < 0 && (label < 0 || row[5].includes(label))));
  const worse = (a, b) => (a.row[1] ?? 2) - (b.row[1] ?? 2);
  const most = (each) => each.errors.filter(fits).reduce((sum, error) => sum + error[2], 0);
  const orders = {worst: worse, best: (a, b) => (b.row[1] ?? -1) - (a.row[1] ?? -1), most: (a, b) => most(b) - most(a) || worse(a, b)};
  rows.sort(orders[state.order]);
  const pictures = new Map(data.pictures.map((picture) => [picture.image, picture]));
  const shown = rows.filter((each) => pictures.has(each.index)), others = rows.filter((each) => !pictures.has(each.index));
  const cards = make('div', {id: 'cards'}), more = make('button', {type: 'button', id: 'more'}, 'Show more');
  let next = 0;
  const add = () => {
    for (const each of shown.slice(next, next + PAGE)) cards.append(card(data, each, pictures.get(each.index), fits, state.kind >= 0 || label >= 0));
    next += PAGE;
    more.hidden = next >= shown.length;
  };
  more.addEventListener('click', add);
  add();
  return [
    make('p', {class: 'hint'}, `Detections with a score of ${share(data.cut.threshold)} or more. Quality is 1 − LRP of the image: 1 if every gt box is found exactly without false positives. ` +
      'Softer edges are less certain. Choose a kind or a class to outline its errors.'),
    filters(data, label, state, rows.length, shown.length), cards, more,
    others.length ? make('details', {}, make('summary', {}, `${number(others.length)} images without a picture here`),
      table([['image'], ['quality', share], ['gt boxes', number], ['found', number], ['errors', number]], others.slice(0, LISTED).map(({row, errors: list}) =>
        [row[0], row[1], row[2], row[3], list.filter(fits).reduce((sum, error) => sum + error[2], 0)]), {label: 'Images without a picture'}),
      others.length > LISTED ? make('p', {class: 'hint'}, `and ${number(others.length - LISTED)} more`) : null) : null,
  ];
}

function filters(data, label, state, count, pictured) {
  const option = (value, text, chosen) => make('option', {value, selected: chosen ? '' : null}, text);
  const pick = (id, text, options, change) => make('label', {}, `${text} `, make('select', {id, onchange: (event) => { change(event.target.value); state.update('images'); }}, options));
  return make('div', {class: 'filters'},
    pick('kind', 'Error', [option(-1, 'any or none', state.kind < 0), ...data.kinds.map((kind, index) => option(index, kind, state.kind === index))], (value) => { state.kind = Number(value); }),
    make('label', {}, 'Class ', make('select', {id: 'class-here', onchange: (event) => state.choose(Number(event.target.value))},
      [option(-1, 'all', label < 0), ...data.classes.map((name, index) => option(index, name, label === index))])),
    pick('order', 'First', [['worst', 'the worst'], ['best', 'the best'], ['most', 'most errors']].map(([value, text]) => option(value, text, state.order === value)), (value) => { state.order = value; }),
    make('output', {id: 'found', role: 'status'}, `${number(count)} images, ${number(pictured)} with pictures`));
}

function card(data, each, picture, fits, outlined) {
  const {row, errors: list} = each;
  const chips = list.map((error) => make('li', {class: outlined && fits(error) ? 'on' : null},
    make('span', {class: 'dot', style: `background:${data.colours[error[1]]}`}), `${error[2]} ${data.kinds[error[0]]}: ${data.classes[error[1]]}`));
  const panel = (title, content, overlay) => make('figure', {class: 'panel'},
    make('div', {class: 'holder'}, make('img', {src: `data:image/jpeg;base64,${content}`, alt: `${title} of ${row[0]}`, width: picture.size[0], height: picture.size[1]}), overlay),
    make('figcaption', {}, title));
  return make('article', {class: 'card'},
    make('h3', {}, `${row[0]} · quality ${share(row[1])} · ${row[3]} of ${row[2]} found`),
    make('div', {class: 'panels'}, panel('ground truth', picture.truth, outlined ? outline(data, picture, (error) => error[0] === 5 && fits(error)) : null),
      panel('prediction', picture.found, outlined ? outline(data, picture, fits) : null)),
    make('ul', {class: 'chips'}, chips.length ? chips : make('li', {}, 'no errors')));
}

function outline(data, picture, fits) {
  const [width, height] = picture.size;
  const boxes = picture.errors.filter(fits).flatMap(([kind, label, box, score]) => ['under', 'over'].map((name) =>
    draw('rect', {class: name, x: box[0], y: box[1], width: Math.max(box[2], 0), height: Math.max(box[3], 0)},
      draw('title', {}, `${data.kinds[kind]}: ${data.classes[label]}${score === null ? '' : ` ${share(score)}`}`))));
  return draw('svg', {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: 'none', 'aria-hidden': 'true'}, boxes);
}
