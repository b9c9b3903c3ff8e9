// Soft edges on a canvas, as gfl_det.visualization draws them: opacity follows the probability.

export const INK = 0.75; // opacity where a distribution puts all its probability
const FAINT = 0.01; // lower probabilities are not drawn
const VEIL = 0.35; // of a box, the most that soft edges wider than it may cover

/** Bins with ascending positions: {first, step, heights}, step > 0 px. */
function ascending(edge, scale) {
  const { start, step, probabilities } = edge;
  if (step > 0) return { first: start * scale, step: step * scale, heights: probabilities };
  const last = start + step * (probabilities.length - 1);
  return { first: last * scale, step: -step * scale, heights: [...probabilities].reverse() };
}

/** How likely the edge is at x: interpolated between bins, 0 one bin beyond the outermost. */
export function presence(bins, x) {
  const place = (x - bins.first) / bins.step;
  const low = Math.floor(place);
  const at = (bin) => bins.heights[bin] ?? 0;
  return at(low) + (place - low) * (at(low + 1) - at(low));
}

/** The probability that the edge lies below x; a bin's is spread evenly around it. */
export function shareBelow(bins, x) {
  const place = (x - bins.first) / bins.step + 0.5;
  const whole = Math.min(bins.heights.length, Math.max(0, Math.floor(place)));
  let sum = 0;
  for (let bin = 0; bin < whole; bin += 1) sum += bins.heights[bin];
  return sum + (place > 0 ? (place - whole) * (bins.heights[whole] ?? 0) : 0);
}

function span(bins) {
  const least = Math.min(FAINT, Math.max(...bins.heights));
  const kept = bins.heights.flatMap((height, bin) => (height >= least ? [bin] : []));
  return [bins.first + (kept[0] - 1) * bins.step, bins.first + (kept.at(-1) + 1) * bins.step];
}

function axis(low, high, size, before, after) {
  const from = Math.max(0, Math.floor(Math.min(span(before)[0], span(after)[0], low)));
  const to = Math.min(size, Math.ceil(Math.max(span(before)[1], span(after)[1], high)));
  const along = [];
  const inside = [];
  for (let pixel = from; pixel < to; pixel += 1) {
    along.push(Math.max(presence(before, pixel + 0.5), presence(after, pixel + 0.5)));
    inside.push(shareBelow(before, pixel + 0.5) * (1 - shareBelow(after, pixel + 0.5)));
  }
  const reach = Math.max(...[before, after].map((bins) => span(bins)[1] - span(bins)[0]));
  return { from, along, inside, reach };
}

/** How likely a box's outline passes each pixel of a part of the canvas, rows of columns. */
export function edgeOpacity(entry, scale, width, height) {
  const [left, top, right, bottom] = entry.edges.map((edge) => ascending(edge, scale));
  const columns = axis(Infinity, -Infinity, width, left, right);
  const rows = axis(Infinity, -Infinity, height, top, bottom);
  const opacity = rows.along.map((alongY, y) => columns.along.map(
    (alongX, x) => Math.max(rows.inside[y] * alongX, alongY * columns.inside[x])));
  return { left: columns.from, top: rows.from, opacity, reach: Math.max(columns.reach, rows.reach) };
}

function rgb(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

/** Which pixels of a part of the canvas touch a box that is narrower than `reach`, row by row. */
function narrowBoxes(entries, scale, reach, left, top, wide, tall) {
  const touched = new Uint8Array(wide * tall);
  entries.forEach(({ box }) => {
    const [x1, y1, x2, y2] = box.map((value) => value * scale);
    if (Math.min(x2 - x1, y2 - y1) >= reach) return;
    const [from, to] = [Math.max(0, Math.floor(x1) - left), Math.min(wide, Math.ceil(x2) - left)];
    const end = Math.min(tall, Math.ceil(y2) - top);
    for (let y = Math.max(0, Math.floor(y1) - top); y < end && from < to; y += 1) {
      touched.fill(1, y * wide + from, y * wide + to);
    }
  });
  return touched;
}

/** Blend the distributions of boxes into pixels, the first on top, each at most by its ink.

Soft edges never hide what is smaller than they are: they cover a narrower box at most by VEIL. */
export function blendEdges(pixels, entries, scale, inkOf = () => INK) {
  const { width, height, data } = pixels;
  const seen = new Float32Array(width * height).fill(1); // share of the picture still to be seen
  [...entries].reverse().filter((entry) => entry.edges.length).forEach((entry) => {
    const { left, top, opacity, reach } = edgeOpacity(entry, scale, width, height);
    if (!opacity.length || !opacity[0].length) return;
    const [wide, ink, colour] = [opacity[0].length, inkOf(entry), rgb(entry.colour)];
    const narrow = narrowBoxes(entries, scale, reach, left, top, wide, opacity.length);
    opacity.forEach((row, y) => row.forEach((presence, x) => {
      const at = (top + y) * width + left + x;
      let alpha = ink * presence;
      if (narrow[y * wide + x]) alpha = Math.min(alpha, 1 - (1 - VEIL) / Math.max(seen[at], 1 - VEIL));
      if (alpha <= 0) return;
      seen[at] *= 1 - alpha;
      for (let band = 0; band < 3; band += 1) {
        data[4 * at + band] += alpha * (colour[band] - data[4 * at + band]);
      }
    }));
  });
}

/** Draw the outlines of boxes, the first on top; `thick` px of the screen, of which there are `ratio`. */
export function drawFrames(paper, entries, scale, ratio, thickOf = () => 1.5) {
  [...entries].reverse().forEach((entry) => {
    const [x1, y1, x2, y2] = entry.box.map((value) => value * scale);
    const thick = thickOf(entry) * ratio;
    [['rgba(0, 0, 0, .4)', thick + 2 * ratio], [entry.colour, thick]].forEach(([colour, line]) => {
      paper.strokeStyle = colour;
      paper.lineWidth = line;
      paper.strokeRect(x1, y1, x2 - x1, y2 - y1);
    });
  });
}

/** Write `entry.text` at each box, the first best placed.

`crowding`: the share of a label that others may cover; one that is covered more is left out. */
export function drawLabels(paper, entries, scale, size, crowding = 1) {
  const { width, height } = paper.canvas;
  paper.font = `${size}px system-ui, sans-serif`;
  paper.textBaseline = 'middle';
  const placed = [];
  entries.forEach((entry) => {
    const [w, h] = [paper.measureText(entry.text).width + size * 0.7, size * 1.4];
    const spot = placeLabel(entry.box.map((value) => value * scale), w, h, placed, width, height);
    const covered = placed.reduce((sum, other) => sum + overlap(spot, other), 0);
    if (covered <= crowding * w * h || crowding >= 1) placed.push({ ...spot, entry });
  });
  placed.reverse().forEach(({ x, y, w, h, entry }) => {
    paper.fillStyle = entry.colour;
    paper.fillRect(x, y, w, h);
    paper.fillStyle = textColour(entry.colour);
    paper.fillText(entry.text, x + size * 0.35, y + h / 2);
  });
}

/** Black or white, the more legible on a colour (WCAG luminance). */
export function textColour(colour) {
  const [r, g, b] = rgb(colour).map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return (light + 0.05) / 0.05 > 1.05 / (light + 0.05) ? '#000' : '#fff';
}

function overlap(a, b) {
  const wide = Math.min(a.x + a.w, b.x + b.w) - Math.max(a.x, b.x);
  const tall = Math.min(a.y + a.h, b.y + b.h) - Math.max(a.y, b.y);
  return wide > 0 && tall > 0 ? wide * tall : 0;
}

/** The place for a label that covers least of the labels placed before it. */
function placeLabel(box, w, h, placed, width, height) {
  const [x1, y1, x2, y2] = box;
  const corners = [[x1, y1 - h], [x1, y1], [x2 - w, y1 - h], [x1, y2], [x2 - w, y1],
    [x1, y2 - h], [x2 - w, y2], [x2 - w, y2 - h]];
  const spots = corners.map(([x, y]) => ({
    x: Math.max(0, Math.min(x, width - w)), y: Math.max(0, Math.min(y, height - h)), w, h }));
  const cost = spots.map((spot, index) => 0.02 * index * w * h
    + placed.reduce((sum, other) => sum + overlap(spot, other), 0));
  return spots[cost.indexOf(Math.min(...cost))];
}

const SVG = 'http://www.w3.org/2000/svg';

function shape(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  if (text !== undefined) element.textContent = text;
  return element;
}

/** A bar for each bin of an edge, as they lie along the image's axis, with a line at the box. */
export function barChart(edge, place, colour) {
  const [width, height, foot, side] = [320, 96, 16, 22];
  const svg = shape('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img',
    'aria-label': `${edge.side} edge: standard deviation ${edge.std} px` });
  const { first, step: apart, heights } = ascending(edge, 1);
  const count = heights.length;
  const step = (width - side) / count;
  const base = height - foot;
  [0, 0.5, 1].forEach((level) => {
    const y = base - level * (base - 8);
    svg.append(shape('line', { class: 'axis', x1: side, x2: width, y1: y, y2: y }),
      shape('text', { x: side - 4, y: y + 3, 'text-anchor': 'end' }, level));
  });
  heights.forEach((probability, bin) => {
    const tall = probability * (base - 8);
    const bar = shape('rect', { class: 'bar', x: side + bin * step + step * 0.12,
      y: base - tall, width: step * 0.76, height: tall, fill: colour });
    const px = (first + bin * apart).toFixed(0);
    bar.append(shape('title', {}, `${px} px: ${(100 * probability).toFixed(1)} %`));
    svg.append(bar);
    if (bin % 4 === 0) {
      const label = { x: side + (bin + 0.5) * step, y: height - 4, 'text-anchor': 'middle' };
      svg.append(shape('text', label, px));
    }
  });
  const at = (px) => side + ((px - first) / apart + 0.5) * step;
  if (edge.interval) {
    const [low, high] = edge.interval.map(at);
    const path = `M${low} 9V4H${high}V9`;
    const bracket = shape('path', { class: 'interval', d: path });
    bracket.append(shape('title', {}, edge.interval.map((px) => px.toFixed(1)).join(' to ')));
    svg.append(bracket);
  }
  const mean = at(place);
  svg.append(shape('line', { class: 'mean', x1: mean, x2: mean, y1: 2, y2: base }));
  return svg;
}
