'use strict';
// Small parts that build elements, and charts as SVG. Text goes in as text, never as HTML.

const SVG = 'http://www.w3.org/2000/svg';

function set(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const make = (tag, attributes, ...children) => set(document.createElement(tag), attributes, children);
const draw = (tag, attributes, ...children) => set(document.createElementNS(SVG, tag), attributes, children);

function number(value, digits = 3) {
  if (value === null || value === undefined) return '–';
  if (Number.isInteger(value) && digits !== 'fixed') return value.toLocaleString('en');
  return value.toFixed(digits === 'fixed' ? 3 : digits);
}

// A fraction as people write AP: .638; whole numbers keep their zero.
const share = (value) => (value === null || value === undefined ? '–' : value.toFixed(3).replace(/^(-?)0\./, '$1.'));

function short(value) {
  const size = Math.abs(value);
  if (size >= 10000) return `${+(value / 1000).toPrecision(3)}k`;
  if (size > 0 && size < 0.01) return value.toExponential(1).replace('.0e', 'e');
  return String(+value.toPrecision(3));
}

function ticks(low, high, log, count) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
    }
    const inside = found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
    return inside.length > 8 ? inside.filter((value) => /^10*$|^0?\.0*1$/.test(String(value))) : inside;
  }
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((value) => value >= rough * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(+value.toPrecision(12));
  return found;
}

function scale(domain, range, log) {
  const change = log ? Math.log10 : (value) => value;
  const [low, high] = domain.map(change);
  return (value) => range[0] + ((change(value) - low) / (high - low || 1)) * (range[1] - range[0]);
}

function extent(values, log) {
  const known = values.filter((value) => value !== null && Number.isFinite(value) && (!log || value > 0));
  if (!known.length) return log ? [0.1, 1] : [0, 1];
  let low = known[0], high = known[0];
  for (const value of known) { low = Math.min(low, value); high = Math.max(high, value); }
  if (log) return low === high ? [low / 2, high * 2] : [low * 0.9, high * 1.1];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

// Charts are drawn in px of the screen, so that letters keep their size on a phone.
const redraw = new ResizeObserver((entries) => {
  for (const entry of entries) {
    const width = Math.round(entry.contentRect.width);
    if (width > 0 && entry.target.shownWidth !== width) {
      entry.target.shownWidth = width;
      entry.target.render(width);
    }
  }
});

/* A chart of lines, dots, bands and bars over one pair of axes.
   spec: {title, x: {label, domain, log}, y: {...}, diagonal, height,
          series: [{name, colour, kind, points: [[x, y], [x, y, radius], of bands [x, low, high], of columns [x, y, from, to]], dash}]} */
function chart(spec) {
  const plot = make('div', {class: 'chart'});
  const readout = make('p', {class: 'readout'}, 'Point at the chart to read values.');
  plot.render = (width) => plot.replaceChildren(paint(spec, width, readout));
  redraw.observe(plot);
  const legend = spec.series.filter((each) => each.name).map((each) =>
    make('span', {}, make('i', {style: `background:${each.colour}`}), each.name));
  return make('figure', {}, make('h3', {}, spec.title), plot,
    legend.length > 1 ? make('div', {class: 'legend'}, legend) : null, readout, numbers(spec));
}

// What a chart shows as a table, for those who cannot see or point; built when it is opened.
function numbers(spec) {
  const details = make('details', {}, make('summary', {}, 'As a table'));
  details.addEventListener('toggle', () => {
    if (!details.open || details.children.length > 1) return;
    const rows = spec.series.filter((each) => each.name).flatMap((each) => {
      const step = Math.ceil(each.points.length / 25);
      return each.points.filter((_, index) => index % step === 0).map(([x, y]) => [each.name, x, y]);
    });
    const format = (value) => (value === null ? '–' : short(value));
    details.append(table([['curve'], [spec.x.label, format], [spec.y.label, format]], rows, {label: spec.title}));
  });
  return details;
}

function paint(spec, width, readout) {
  const height = spec.height || 300;
  const box = {left: 54, right: width - 12, top: 8, bottom: height - 38};
  const all = spec.series.flatMap((each) => each.points);
  const domainX = spec.x.domain || extent(all.map((point) => point[0]), spec.x.log);
  const domainY = spec.y.domain || extent(spec.series.flatMap((each) => each.points.flatMap((point) => point.slice(1, each.kind === 'band' ? 3 : 2))), spec.y.log);
  const x = scale(domainX, [box.left, box.right], spec.x.log);
  const y = scale(domainY, [box.bottom, box.top], spec.y.log);
  const svg = draw('svg', {role: 'img', 'aria-label': describe(spec), viewBox: `0 0 ${width} ${height}`, height});
  for (const value of ticks(...domainY, spec.y.log, 5)) {
    svg.append(draw('line', {class: 'grid', x1: box.left, x2: box.right, y1: y(value), y2: y(value)}),
      draw('text', {x: box.left - 6, y: y(value) + 4, 'text-anchor': 'end'}, short(value)));
  }
  for (const value of ticks(...domainX, spec.x.log, width < 420 ? 4 : 6)) {
    svg.append(draw('line', {class: 'grid', x1: x(value), x2: x(value), y1: box.top, y2: box.bottom}),
      draw('text', {x: x(value), y: box.bottom + 16, 'text-anchor': 'middle'}, short(value)));
  }
  svg.append(draw('text', {x: (box.left + box.right) / 2, y: height - 4, 'text-anchor': 'middle'}, spec.x.label),
    draw('text', {x: 11, y: (box.top + box.bottom) / 2, 'text-anchor': 'middle',
      transform: `rotate(-90 11 ${(box.top + box.bottom) / 2})`}, spec.y.label));
  if (spec.diagonal) {
    const low = Math.max(domainX[0], domainY[0]), high = Math.min(domainX[1], domainY[1]);
    svg.append(draw('line', {class: 'cursor', x1: x(low), y1: y(low), x2: x(high), y2: y(high)}));
  }
  for (const each of spec.series) svg.append(...marks(each, x, y, box));
  svg.append(follow(spec, x, box, readout, svg));
  return svg;
}

function marks(series, x, y, box) {
  const known = series.points.filter((point) => point.every((value) => value !== null));
  if (series.kind === 'dots') {
    return known.map(([a, b]) => draw('circle', {cx: x(a), cy: y(b), r: series.size || 3, fill: series.colour, opacity: series.opacity}));
  }
  if (series.kind === 'band' && known.length) {
    const path = [...known.map((point) => [x(point[0]), y(point[2])]), ...known.reverse().map((point) => [x(point[0]), y(point[1])])];
    return [draw('polygon', {points: path.map((place) => place.map((v) => v.toFixed(1)).join()).join(' '), fill: series.colour, opacity: 0.16})];
  }
  if (series.kind === 'columns') {
    return known.filter((point) => point[1] > 0).map(([, b, low, high]) => draw('rect', {x: x(low) + 0.5, y: y(b),
      width: Math.max(1, x(high) - x(low) - 1), height: Math.max(0, box.bottom - y(b)), fill: series.colour, opacity: 0.5}));
  }
  if (series.kind === 'bars') {
    return known.filter((point) => point[1] > 0).map(([a, b]) => draw('rect', {x: x(a - series.width / 2) + 0.5,
      y: y(b), width: Math.max(1, x(series.width) - x(0) - 1), height: Math.max(0, box.bottom - y(b)), fill: series.colour, opacity: 0.5}));
  }
  let path = '', broken = true;
  for (const [a, b] of series.points) {
    if (a === null || b === null) { broken = true; continue; }
    path += `${broken ? 'M' : 'L'}${x(a).toFixed(1)} ${y(b).toFixed(1)}`;
    broken = false;
  }
  const line = draw('path', {d: path, fill: 'none', stroke: series.colour, 'stroke-width': series.stroke || 2, 'stroke-dasharray': series.dash, 'stroke-linejoin': 'round'});
  const points = series.kind === 'linedots' ? known.map(([a, b, size]) => draw('circle', {cx: x(a), cy: y(b), r: size || 3, fill: series.colour})) : [];
  return [line, ...points];
}

// A line that follows the pointer, and the values there in words.
function follow(spec, x, box, readout, svg) {
  const read = spec.series.filter((each) => each.name && each.kind !== 'band');
  const cursor = draw('line', {class: 'cursor', y1: box.top, y2: box.bottom, visibility: 'hidden'});
  const nearest = (points, place) => points.reduce((best, point) =>
    point[0] !== null && point[1] !== null && (!best || Math.abs(x(point[0]) - place) < Math.abs(x(best[0]) - place)) ? point : best, null);
  svg.addEventListener('pointermove', (event) => {
    const place = event.clientX - svg.getBoundingClientRect().left;
    const found = read.map((each) => [each.name, nearest(each.points, place)]).filter((pair) => pair[1]);
    if (!found.length) return;
    const at = x(found[0][1][0]);
    set(cursor, {x1: at, x2: at, visibility: 'visible'}, []);
    readout.textContent = `${spec.x.label} ${short(found[0][1][0])}: ` +
      found.map(([name, point]) => `${name} ${short(point[1])}`).join(', ');
  });
  return cursor;
}

function describe(spec) {
  const parts = spec.series.filter((each) => each.name && each.points.length).map((each) => {
    const last = each.points[each.points.length - 1];
    return `${each.name}, ${each.points.length} points, last ${short(last[0] ?? 0)}: ${last[1] === null ? 'none' : short(last[1])}`;
  });
  return `${spec.title}: ${spec.y.label} over ${spec.x.label}. ${parts.join('; ')}`;
}

// Values as RFC 4180 has them; a text that a spreadsheet would take for a formula gets an apostrophe.
function csv(rows) {
  const cell = (value) => {
    const text = value === null || value === undefined ? '' : typeof value === 'string' && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join()).join('\r\n') + '\r\n';
}

function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], {type: 'text/csv;charset=utf-8'}));
  make('a', {href: address, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

/* A table whose columns sort at a click, and that can be saved as CSV, as it is sorted.
   columns: [name, formatter, 'action' if it holds no value]; rows: arrays of values. */
function table(columns, rows, options = {}) {
  const body = make('tbody'), label = options.label || 'Table';
  let current = rows;
  const heads = columns.map(([name], index) => make('th', {scope: 'col'}, options.sorted === false ? name :
    make('button', {type: 'button', onclick: () => sort(index)}, name)));
  const fill = (list) => body.replaceChildren(...list.map((row) => make('tr', {class: options.chosen && options.chosen(row) ? 'chosen' : null},
    columns.map(([, format], index) => make('td', {title: index === 0 && !format ? row[0] : null}, format ? format(row[index]) : String(row[index]))))));
  function sort(index) {
    const down = heads[index].getAttribute('aria-sort') !== 'descending' && index > 0 || heads[index].getAttribute('aria-sort') === 'ascending';
    heads.forEach((head) => head.removeAttribute('aria-sort'));
    heads[index].setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const order = (a, b) => (typeof a === 'string' ? a.localeCompare(b) : (a ?? -Infinity) - (b ?? -Infinity));
    fill(current = [...rows].sort((a, b) => (down ? -1 : 1) * order(a[index], b[index])));
  }
  fill(rows);
  const valued = columns.map((each, index) => index).filter((index) => columns[index][2] !== 'action');
  const save = () => download(`${label.toLowerCase().replace(/\W+/g, '_')}.csv`,
    csv([valued.map((index) => columns[index][0]), ...current.map((row) => valued.map((index) => row[index]))]));
  return make('div', {class: 'table'},
    make('div', {class: rows.length > 12 ? 'wide tall' : 'wide', tabindex: 0, role: 'region', 'aria-label': label},
      make('table', {}, make('thead', {}, make('tr', {}, heads)), body)),
    make('button', {type: 'button', class: 'csv', 'aria-label': `Save the table "${label}" as CSV`, onclick: save}, 'CSV'));
}
