'use strict';
// Sections of the page: functions from the numbers and the selected class (-1: all) to elements.

const grid = Array.from({length: 101}, (_, index) => index / 100);
const zip = (xs, ys) => xs.map((x, index) => [x, ys[index]]);
const colour = (index) => `var(--s${index % 5})`;
const named = (data, label) => (label < 0 ? 'all classes' : data.classes[label]);
const COLUMNS = ['gt boxes', 'AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large', 'F1', 'threshold', 'precision', 'recall'];

// Counts at a cut, or at the common threshold: {right, kinds, boxes} of a class, or of all.
function countsAt(data, label, cut) {
  const classes = label < 0 ? data.classes.map((_, index) => index) : [label];
  const boxes = classes.reduce((sum, index) => sum + data.per_class[index][0], 0);
  if (cut === null) {
    const right = data.confusion.reduce((sum, [row, column, count]) => sum + (row === column && classes.includes(row) ? count : 0), 0);
    return {right, kinds: data.errors.kept[label + 1], boxes};
  }
  const first = Math.round(cut * 100);
  const above = (row) => classes.reduce((sum, index) => sum + data.by_score[index][row].slice(first).reduce((a, b) => a + b, 0), 0);
  const [right, ...kinds] = [0, 1, 2, 3, 4, 5, 6].map(above);
  kinds[5] = boxes - kinds[5];
  return {right, kinds, boxes};
}

function counts(data, label, state) {
  const {right, kinds, boxes} = countsAt(data, label, state.cut);
  const wrong = kinds.slice(0, 5).reduce((a, b) => a + b, 0);
  const ratio = (a, b) => (b ? a / b : null);
  const tile = (value, name) => make('div', {class: 'tile'}, make('b', {}, value), make('span', {}, name));
  return [
    make('h3', {}, `At a score of ${share(state.cut ?? data.cut.threshold)} or more, IoU .5, ${named(data, label)}`),
    make('div', {class: 'tiles', id: 'counts-here'}, tile(number(right + wrong), 'detections'), tile(number(right), 'true positives'), tile(number(wrong), 'false positives'),
      tile(number(boxes - right), 'gt boxes not found'), tile(share(ratio(right, right + wrong)), 'precision'), tile(share(ratio(right, boxes)), 'recall'), tile(share(ratio(2 * right, right + wrong + boxes)), 'F1')),
  ];
}

function model(data) {
  if (!data.model) return [];
  const {parameters, milliseconds, batch, device} = data.model;
  const speed = milliseconds === null ? '' : `, ${number(milliseconds, milliseconds < 10 ? 1 : 0)} ms per image without reading it (${device}, batches of ${batch}, median)`;
  return [make('p', {id: 'model'}, `${number(parameters / 1e6, 1)} million parameters${speed}.`)];
}

function summary(data, label, state) {
  const own = label < 0 ? null : data.per_class[label];
  const [ap, ap50, ap75] = own ? own.slice(1, 4) : data.ap[0].slice(1, 4);
  const cut = own ? {f1: own[7], threshold: own[8], precision: own[9], recall: own[10]} : data.cut;
  const tile = (value, name) => make('div', {class: 'tile'}, make('b', {}, share(value)), make('span', {}, name));
  const rows = data.classes.map((name, index) => [name, ...data.per_class[index]]);
  return [
    make('div', {class: 'tiles'}, tile(ap, 'AP'), tile(ap50, 'AP50'), tile(ap75, 'AP75'), tile(cut.f1, 'best F1'), tile(cut.threshold, 'at this score')),
    ...model(data), ...counts(data, label, state),
    make('h3', {}, 'By size of the gt box, all classes'),
    table([['size'], ['AP', share], ['AP50', share], ['AP75', share], ['recall', share]], data.ap, {sorted: false, label: 'AP by size'}),
    ...intervals(data),
    make('p', {class: 'hint'}, 'COCO’s numbers: AP over IoU .50 to .95; small is below 32² px, large above 96² px; recall with 100 detections per image. F1 at IoU .5 and at its best score threshold.'),
    make('h3', {}, 'By class'),
    table([['class'], ...COLUMNS.map((name, index) => [name, index ? share : (value) => number(value)])], rows,
      {label: 'Numbers by class', chosen: (row) => label >= 0 && row[0] === data.classes[label]}),
  ];
}

function intervals(data) {
  const known = Object.entries(data.reliability[data.reliability.length - 1].intervals).filter(([, ends]) => ends[0] !== null);
  if (!known.length) return [];
  const texts = known.map(([name, [low, high]]) => `${name} ${share(low)} to ${share(high)}`);
  return [make('p', {}, `.95 intervals over images like these: ${texts.join(', ')}.`)];
}

function precision(data, label) {
  const curves = data.precision[label + 1];
  const series = ['IoU .5', 'IoU .75', 'mean of .5 to .95'].map((name, index) => ({name, colour: colour(index), points: zip(grid, curves[index])}));
  const f1 = [{name: 'F1', colour: colour(0), points: zip(grid, data.f1[label + 1])}];
  const unit = [0, 1];
  return [make('div', {class: 'pair'},
    chart({title: `Precision and recall, ${named(data, label)}`, x: {label: 'recall', domain: unit}, y: {label: 'precision', domain: unit}, series}),
    chart({title: `F1 by score threshold, IoU .5, ${named(data, label)}`, x: {label: 'minimum score', domain: unit}, y: {label: 'F1', domain: unit}, series: f1}))];
}

function marked(name, sides) {
  const inside = sides.filter((side) => side.floors[name] && side.metrics[name] <= side.floors[name][1]).map((side) => side.name);
  return inside.length ? `${name} * ${sides.length > 1 ? inside.join(', ') : ''}` : name;
}

// A small reliability diagram of each class, those with the most detections first; a click selects the class.
const SMALL = 150, MULTIPLES = 12, FEW = 10;

function multiples(data, state) {
  const total = (index) => data.reliability[0].number[index + 1].reduce((a, b) => a + b, 0);
  const order = data.classes.map((_, index) => index).sort((a, b) => total(b) - total(a));
  const cells = make('div', {class: 'multiples'}), more = make('button', {type: 'button'}, `Show all ${order.length} classes`);
  const add = (list) => cells.append(...list.map((index) => make('button', {type: 'button', 'aria-label': `Select ${data.classes[index]}, ${number(total(index))} detections`,
    onclick: () => { state.choose(index); document.getElementById('class').focus({preventScroll: true}); }}, make('b', {}, data.classes[index]), small(data.reliability, index + 1), make('span', {}, `${number(total(index))} detections`))));
  add(order.slice(0, MULTIPLES));
  more.hidden = order.length <= MULTIPLES;
  more.addEventListener('click', () => { add(order.slice(MULTIPLES)); more.hidden = true; });
  return [make('h3', {}, 'By class'), make('p', {class: 'hint'}, `Mean IoU against score from 0 to 1, as above; bins with fewer than ${FEW} detections are faint.`), cells, more];
}

function small(sides, row) {
  const [low, high] = [6, SMALL - 6];
  const x = scale([0, 1], [low, high]), y = scale([0, 1], [high, low]);
  const svg = draw('svg', {viewBox: `0 0 ${SMALL} ${SMALL}`, 'aria-hidden': 'true'},
    draw('rect', {class: 'frame', x: low, y: low, width: high - low, height: high - low}),
    draw('line', {class: 'cursor', x1: low, y1: high, x2: high, y2: low}));
  sides.forEach((side, index) => {
    const points = side.score[row].map((score, bin) => [score, side.iou[row][bin], side.number[row][bin]]).filter((point) => point[0] !== null);
    svg.append(draw('path', {d: points.map(([a, b], place) => `${place ? 'L' : 'M'}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join(''), fill: 'none', stroke: colour(index), opacity: 0.45}),
      ...points.map(([a, b, count]) => draw('circle', {cx: x(a), cy: y(b), r: 2.6, fill: colour(index), opacity: count < FEW ? 0.25 : 1})));
  });
  return svg;
}

function reliability(data, label, state) {
  const sides = data.reliability, row = label + 1;
  const bins = sides[0].number[0].length, unit = [0, 1];
  const curves = sides.map((side, index) => ({name: side.name, kind: 'linedots', colour: colour(index), stroke: 1.3,
    points: side.score[row].map((score, bin) => [score, side.iou[row][bin], 1 + 1.3 * Math.log10(1 + side.number[row][bin])]).filter((point) => point[0] !== null)}));
  const bars = sides.map((side, index) => ({name: side.name, kind: 'bars', colour: colour(index), width: 1 / bins,
    points: side.number[row].map((count, bin) => [(bin + 0.5) / bins, Math.log10(1 + count)])}));
  const highest = Math.max(1, ...bars.flatMap((each) => each.points.map((point) => point[1])));
  const metrics = Object.keys(sides[0].metrics);
  return [
    make('p', {class: 'hint'}, 'A GFL score should equal the IoU of its box with a gt box, 0 for false positives: the dotted line. Larger dots stand for more detections.' +
      (sides.length > 1 ? '' : ' One side only: there is no calibrator (--calibrator).')),
    make('div', {class: 'pair'},
      chart({title: `Reliability, ${named(data, label)}`, diagonal: true, x: {label: 'mean score', domain: unit}, y: {label: 'mean IoU', domain: unit}, series: curves}),
      chart({title: 'Number of detections', x: {label: 'score', domain: unit}, y: {label: 'log10 of 1 + number', domain: [0, highest]}, series: bars})),
    ...(label < 0 && data.classes.length > 1 ? multiples(data, state) : []),
    make('h3', {}, 'Calibration errors, all classes'),
    table([['error'], ...sides.flatMap((side) => [[side.name, share], ['detections', (value) => number(value)], ['.95 of floor', share], ['debiased', share]])],
      metrics.map((name) => [marked(name, sides), ...sides.flatMap((side) => [side.metrics[name], ...(side.floors[name] || [null, null, null])])]),
      {sorted: false, label: 'Calibration errors'}),
    make('p', {class: 'hint'}, 'With few detections absolute gaps are never 0: one in twenty perfectly calibrated detectors with these scores exceeds ".95 of floor". ' +
      '* marks values below it: no evidence of miscalibration. The debiased error of such a detector is 0 on average.'),
  ];
}

function cuts(data, label) {
  const {tau, rows, means} = data.cuts;
  const columns = [['class'], ['detections', number], ...['raw cut', 'calibrated cut', 'LRP', 'best here, raw', 'its LRP', 'best here, calibrated', 'its LRP'].map((name) => [name, share])];
  return [
    make('p', {class: 'hint'}, 'Score thresholds that the calibrator was fitted with on other images: detections above both are kept; without a number, all. ' +
      'Beside them the thresholds with the lowest LRP on these images, unknown beforehand: the best possible result. ' +
      `LRP at IoU ${tau}, as in the fit; 0 is perfect.`),
    make('p', {}, `Mean LRP: ${share(means[0])} at the fitted thresholds; ${share(means[1])} at the best raw ones, ${share(means[2])} at the best calibrated ones.`),
    table(columns, rows, {label: 'Thresholds per class', chosen: (row) => label >= 0 && row[0] === data.classes[label]}),
  ];
}

function uncertainty(data, label, state) {
  if (!data.uncertainty) return [make('p', {class: 'hint'}, 'These results have no edge_std, which needs a GFL head of gfl_det.')];
  const names = Object.keys(data.uncertainty.sides);
  const side = data.uncertainty.sides[state.side || names[0]];
  const choose = make('select', {'aria-label': 'Edges', onchange: (event) => { state.side = event.target.value; state.update('uncertainty'); }},
    names.map((name) => make('option', {value: name, selected: name === (state.side || names[0]) ? '' : null}, name)));
  const {std, error, low, high} = side.bins;
  const lowest = low.filter((value) => value > 0);
  const floor = Math.max(1e-3, lowest.length ? 0.3 * Math.min(...lowest) : 0);
  const points = side.points.filter(([a, b]) => a > 0 && b >= floor);
  const series = [
    {name: '', kind: 'dots', size: 1.6, opacity: 0.35, colour: 'var(--dim)', points},
    {name: '', kind: 'band', colour: colour(0), points: std.map((value, index) => [value, Math.max(low[index], floor), Math.max(high[index], floor)])},
    {name: 'root mean square error', kind: 'linedots', colour: colour(0), points: zip(std, error).filter((point) => point[1] >= floor)},
  ];
  const covered = data.uncertainty.coverage;
  return [
    make('p', {class: 'hint'}, 'Edges of detections that match a gt box at IoU .5: predicted deviation against distance from the gt edge. ' +
      'The line averages groups with equal numbers of edges, the band contains the middle 80 % of their errors; the dotted line is the ideal.'),
    make('div', {class: 'filters'}, choose, make('output', {}, `${number(side.edges)} edges, rank correlation ${share(side.correlation)}, ` +
      `deviation ${number(side.rms_std, 2)} px, error ${number(side.rms_error, 2)} px (root mean squares)`)),
    chart({title: 'Error against predicted deviation', diagonal: true, height: 360, x: {label: 'predicted deviation, px', log: true},
      y: {label: 'error, px', log: true}, series}),
    covered ? make('p', {}, `Intervals${data.uncertainty.level ? ` of level ${data.uncertainty.level}` : ''} contain ${share(covered[0])} of the gt edges: ` +
      ['left', 'top', 'right', 'bottom'].map((name, index) => `${name} ${share(covered[index + 1])}`).join(', ') +
      `. Of the boxes ${share(data.uncertainty.boxes)} have all four edges inside.`) : null,
  ];
}

const MEANING = {
  localisation: 'right class, IoU of .1 to .5',
  class: 'IoU of .5 or more with a gt box of another class',
  both: 'another class, and IoU of .1 to .5',
  duplicate: 'IoU of .5 or more with a gt box already matched',
  background: 'IoU below .1 with all gt boxes',
  missed: 'a gt box without a match, localisation or class error',
};

function errors(data, label, state) {
  const gains = data.kinds.map((kind) => data.errors.gains[kind] ?? 0);
  const largest = Math.max(...gains, 1e-9);
  const bars = data.kinds.flatMap((kind, index) => [
    make('span', {title: MEANING[kind]}, kind),
    make('div', {class: 'track'}, make('div', {class: 'fill', style: `width:${Math.max(0, 100 * gains[index] / largest)}%`})),
    make('span', {class: 'number'}, `+${share(gains[index])}`),
  ]);
  const here = countsAt(data, label, state.cut).kinds;
  const rows = data.kinds.map((kind, index) => [kind, data.errors.all[index], here[index], index]);
  const show = (index) => make('button', {type: 'button', onclick: () => state.showKind(index)}, 'Show');
  const threshold = share(state.cut ?? data.cut.threshold);
  return [
    make('p', {class: 'hint'}, 'Kinds as TIDE defines them (Bolya et al., ECCV 2020). A bar is the gain in AP50 if only the errors of this kind were fixed.'),
    make('div', {class: 'pair'},
      make('figure', {}, make('h3', {}, `AP50 lost per kind of error (${share(data.errors.gains.AP)}), all classes`),
        make('div', {class: 'bars', role: 'img', 'aria-label': data.kinds.map((kind, index) => `${kind} ${share(gains[index])}`).join(', ')}, bars),
        make('p', {class: 'hint'}, `All false positives +${share(data.errors.gains['false positives'])}, all false negatives +${share(data.errors.gains['false negatives'])}.`)),
      make('div', {class: 'phrases'}, make('h3', {}, `Number of errors, ${named(data, label)}`),
        table([['kind', (kind) => make('div', {class: 'meaning'}, kind, make('small', {}, MEANING[kind]))], [label < 0 ? 'of all' : 'of all classes', number], [`score from ${threshold}`, number], ['images', show, 'action']], rows, {sorted: false, label: 'Numbers of errors'}))),
  ];
}

function cellPhrase(data, [row, column]) {
  const size = data.classes.length, [of, as] = [data.classes[row], data.classes[column]];
  if (column === size) return `${of}, not found`;
  if (row === size) return `nothing, taken for ${as}`;
  return row === column ? `${of}, found` : `${of}, taken for ${as}`;
}

function confusion(data, label, state) {
  const names = [...data.classes, 'nothing'], size = names.length;
  const sums = new Array(size).fill(0);
  for (const [row, , count] of data.confusion) sums[row] += count;
  const own = ([row, column]) => label < 0 || row === label || column === label;
  const mixed = data.confusion.filter((cell) => cell[0] !== cell[1] && cell[0] < size - 1 && cell[1] < size - 1 && own(cell));
  const list = mixed.sort((a, b) => b[2] - a[2]).slice(0, 15).map((cell) => [cellPhrase(data, cell), cell[2], cell[2] / sums[cell[0]], cell.slice(0, 2)]);
  const show = (cell) => make('button', {type: 'button', 'aria-label': `Show ${cellPhrase(data, cell)}`, onclick: () => state.showCell(cell)}, 'Show');
  const readout = make('p', {class: 'readout', 'aria-live': 'polite'}, 'Point at a cell to read it, click it to see its images. With the keyboard: arrows and Enter.');
  return [
    make('p', {class: 'hint'}, `Detections with a score of ${share(data.cut.threshold)} or more, at IoU .5. Darker cells have a larger share of their row.`),
    make('div', {class: size > 25 ? 'stack' : 'pair'},
      make('figure', {}, make('h3', {}, 'True class (rows), predicted class (columns)'),
        matrix(data, names, sums, label, readout, state), readout),
      make('div', {class: 'phrases'}, make('h3', {}, `Most frequent confusions, ${named(data, label)}`), list.length ?
        table([['true class'], ['number', number], ['of its row', share], ['images', show, 'action']], list, {sorted: false, label: 'Most frequent confusions'}) : make('p', {class: 'hint'}, 'No class is confused with another.'))),
  ];
}

function matrix(data, names, sums, label, readout, state) {
  const size = names.length, written = size <= 13;
  const side = written ? 38 : size <= 40 ? 18 : 11;
  const turn = side > 11 ? -55 : -90;
  const clip = (name) => (name.length > 14 ? `${name.slice(0, 13)}…` : name);
  const left = 8 + 7.2 * Math.max(...names.map((name) => clip(name).length)), top = left * (turn === -90 ? 1 : 0.85) + 6;
  const svg = draw('svg', {role: 'img', 'aria-label': `Confusion matrix of ${size - 1} classes`, style: `width:${left + size * side + 40}px`,
    viewBox: `0 0 ${left + size * side + 40} ${top + size * side + 4}`});
  const text = Math.min(11.5, side - 0.5);
  names.forEach((name, index) => {
    const weight = index === label ? 700 : 400, middle = (index + 0.5) * side;
    svg.append(draw('text', {x: left - 5, y: top + middle + 4, 'text-anchor': 'end', style: `font-size:${text}px;font-weight:${weight}`}, clip(name)),
      draw('text', {x: 0, y: 0, transform: `translate(${left + middle + (turn === -90 ? 4 : 3)} ${top - 5}) rotate(${turn})`, style: `font-size:${text}px;font-weight:${weight}`}, clip(name)));
  });
  svg.append(draw('rect', {x: left, y: top, width: size * side, height: size * side, fill: 'none', stroke: 'var(--line)'}));
  const known = new Map(data.confusion.map(([row, column, count]) => [row * size + column, count]));
  const read = (row, column) => {
    const count = known.get(row * size + column) || 0;
    readout.textContent = `${cellPhrase(data, [row, column])}: ${number(count)} (${share(count / (sums[row] || 1))} of the row)`;
  };
  for (const [row, column, count] of data.confusion) {
    const part = count / (sums[row] || 1), faded = label >= 0 && row !== label && column !== label;
    svg.append(draw('rect', {x: left + column * side, y: top + row * side, width: side - 1, height: side - 1,
      fill: `rgba(var(--heat), ${(0.08 + 0.92 * part).toFixed(3)})`, opacity: faded ? 0.3 : 1,
      class: 'cell', onpointerenter: () => read(row, column), onclick: () => state.showCell([row, column])}));
    if (written) {
      svg.append(draw('text', {x: left + (column + 0.5) * side - 0.5, y: top + (row + 0.5) * side + 3.5, 'text-anchor': 'middle',
        style: `font-size:10.5px;pointer-events:none;fill:${part > 0.55 ? 'var(--card)' : 'var(--text)'}`}, short(count)));
    }
  }
  // One stop of the keyboard for all cells: arrows move, Enter shows the images.
  const mark = draw('rect', {class: 'mark', width: side - 1, height: side - 1, visibility: 'hidden'});
  let place = null;
  svg.append(mark);
  const steps = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
  return make('div', {class: 'wide chart', tabindex: 0, role: 'region', 'aria-label': 'Confusion matrix: arrows read its cells, Enter shows the images of one',
    onkeydown: (event) => {
      if (event.key in steps) {
        place = place ? place.map((value, axis) => Math.max(0, Math.min(size - 1, value + steps[event.key][axis]))) : [0, 0];
        set(mark, {x: left + place[1] * side, y: top + place[0] * side, visibility: 'visible'}, []);
        read(...place);
        mark.scrollIntoView({block: 'nearest', inline: 'nearest'});
      } else if (event.key === 'Enter' && place && known.has(place[0] * size + place[1])) state.showCell(place);
      else return;
      event.preventDefault();
    }}, svg);
}

function histogram(title, unit, {borders, counts: all}, label, name) {
  const points = all[label + 1].map((count, bin) => [Math.sqrt(borders[bin] * borders[bin + 1]), count, borders[bin], borders[bin + 1]]);
  const used = all[0].map((count, bin) => (count ? bin : -1)).filter((bin) => bin >= 0);
  const [first, last] = used.length ? [used[0], used[used.length - 1]] : [0, borders.length - 2];
  const domain = [0, Math.max(1, ...points.map((point) => point[1]))];
  return chart({title: `${title}, ${name}`, height: 240, x: {label: unit, log: true, domain: [borders[first], borders[last + 1]]},
    y: {label: 'gt boxes', domain}, series: [{name: 'gt boxes', kind: 'columns', colour: colour(0), points: points.slice(first, last + 1)}]});
}

function dataset(data, label) {
  const {classes, per_image: perImage, sides, ratios, sizes, all_sizes: allSizes} = data.dataset;
  const rows = data.classes.map((name, index) => [name, data.per_class[index][0], ...classes[index]]);
  const bars = perImage.map((count, index) => [index, count, index - 0.5, index + 0.5]);
  const most = perImage.length - 1;
  return [
    make('div', {class: 'pair'},
      histogram('Size of the gt boxes', 'square root of the area, px', sides, label, named(data, label)),
      histogram('Shape of the gt boxes', 'width / height', ratios, label, named(data, label)),
      chart({title: 'Gt boxes per image', height: 240, x: {label: most >= 30 ? 'gt boxes; 30 stands for more too' : 'gt boxes', domain: [-0.5, Math.max(most, 1) + 0.5]},
        y: {label: 'images', domain: [0, Math.max(1, ...perImage)]}, series: [{name: 'images', kind: 'columns', colour: colour(0), points: bars}]}),
      make('figure', {}, make('h3', {}, 'Sizes of the images'), sizes.length ? table([['width, px', number], ['height, px', number], ['images', number]], sizes, {label: 'Sizes of the images'}) : null,
        allSizes > sizes.length ? make('p', {class: 'hint'}, `the most frequent of ${number(allSizes)}`) : null)),
    make('h3', {}, 'By class'),
    table([['class'], ['gt boxes', number], ['images', number], ['crowds', number], ['median side, px', (value) => number(value, 1)], ['small', share], ['medium', share], ['large', share]], rows,
      {label: 'Data by class', chosen: (row) => label >= 0 && row[0] === data.classes[label]}),
  ];
}

function training(data) {
  if (!data.training || !(data.training.training.length + data.training.validation.length)) {
    return [make('p', {class: 'hint'}, 'There are no training logs (vis_data/scalars.json): give a work dir, or --logs.')];
  }
  const curves = (list, test) => list.filter((each) => test(each.name))
    .map((each, index) => ({name: each.name.replace('coco/bbox_', ''), colour: colour(index), kind: each.steps.length < 40 ? 'linedots' : 'line', steps: each.steps, points: zip(each.steps, each.values)}));
  const steps = data.training.training, scores = data.training.validation;
  const panels = [
    ['Losses', 'step', 'loss', curves(steps, (name) => name.startsWith('loss'))],
    ['Validation', 'epoch', 'AP', curves(scores, (name) => /mAP(_50|_75)?$/.test(name)), [0, 1]],
    ['Learning rate', 'step', 'rate', curves(steps, (name) => name === 'lr')],
    ['Gradient norm', 'step', 'norm', curves(steps, (name) => name === 'grad_norm')],
  ];
  return [make('div', {class: 'pair'}, panels.filter((each) => each[3].length).map(([title, x, y, series, domain]) =>
    chart({title, height: 260, x: {label: x, domain: [0, Math.max(...series.flatMap((each) => each.steps))]}, y: {label: y, domain}, series})))];
}
