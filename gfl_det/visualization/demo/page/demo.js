import { INK, barChart, blendEdges, drawFrames, drawLabels } from './drawing.js';

const part = (id) => document.getElementById(id);
const [main, canvas, status] = [document.querySelector('main'), part('canvas'), part('status')];
const [file, threshold, list] = [part('file'), part('threshold'), part('list')];
const state = { info: null, image: null, found: null, chosen: null, request: 0 };
main.className = 'empty';

function say(text, isError = false) {
  status.textContent = text;
  status.className = isError ? 'error' : '';
}

async function read(response) {
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

async function open(blob) {
  state.request += 1;
  const { request } = state;
  try {
    if (state.info && blob.size > state.info.max_bytes) throw new Error(state.info.too_large);
    say('Looking …');
    const found = await read(await fetch('detect', {
      method: 'POST', headers: { 'Content-Type': 'application/octet-stream' }, body: blob }));
    const image = await createImageBitmap(blob, { imageOrientation: 'from-image' });
    if (request !== state.request) return; // another image was dropped in the meantime
    Object.assign(state, { image, found, chosen: null });
    main.className = '';
    [part('drop').hidden, canvas.hidden] = [true, false];
    [part('side').hidden, part('another').hidden] = [false, false];
    say('');
    choose(null);
  } catch (error) {
    if (request !== state.request) return;
    const lost = error instanceof TypeError;
    say(lost ? 'The server does not answer: is it still running?' : error.message, true);
  }
}

function visible() {
  return state.found.boxes.filter((entry) => entry.score >= Number(threshold.value));
}

function draw() {
  if (!state.found) return;
  const { width, height } = state.found;
  const room = part('stage').clientWidth;
  const shown = Math.min(room, Math.max(width, Math.min(room, 960)), window.innerHeight * 0.85 * width / height);
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  canvas.width = Math.round(shown * ratio);
  canvas.height = Math.round(canvas.width * height / width);
  canvas.style.width = `${shown}px`;
  const scale = canvas.width / width;
  const paper = canvas.getContext('2d', { willReadFrequently: true });
  paper.drawImage(state.image, 0, 0, canvas.width, canvas.height);
  const entries = visible();
  const pixels = paper.getImageData(0, 0, canvas.width, canvas.height);
  blendEdges(pixels, entries, scale,
    (entry) => (!state.chosen || entry === state.chosen ? INK : 0.15));
  paper.putImageData(pixels, 0, 0);
  drawFrames(paper, entries, scale, ratio, (entry) => (entry === state.chosen ? 3 : 1.5));
  const order = [...entries].sort((a, b) => (b === state.chosen) - (a === state.chosen));
  const size = Math.max(9.5, Math.min(12, canvas.clientWidth / 55)) * ratio;
  const texts = order.map((each) => ({ ...each, text: `${each.name} ${each.score.toFixed(2)}` }));
  drawLabels(paper, texts, scale, size);
  showList(entries);
}

function showList(entries) {
  part('count').textContent = entries.length === 1 ? '1 box' : `${entries.length} boxes`;
  list.replaceChildren(...entries.map((entry) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.setAttribute('aria-pressed', entry === state.chosen);
    button.innerHTML = '<svg viewBox="0 0 8 8" aria-hidden="true"><rect width="8" height="8" rx="2"/></svg>';
    button.querySelector('rect').setAttribute('fill', entry.colour);
    button.append(`${entry.name} ${entry.score.toFixed(2)}`);
    button.addEventListener('click', () => {
      choose(entry);
      list.children[entries.indexOf(entry)].focus({ preventScroll: true });
    });
    return button;
  }));
}

function choose(entry) {
  state.chosen = entry;
  draw();
  const chosen = part('chosen');
  if (!entry) {
    const hint = document.createElement('p');
    hint.className = 'hint';
    hint.textContent = visible().length
      ? 'Click a box to see the distributions of its edges.'
      : 'No box has this score; move the slider to the left.';
    chosen.replaceChildren(hint);
    return;
  }
  const title = document.createElement('h2');
  title.textContent = `${entry.name}, score ${entry.score.toFixed(2)}`;
  chosen.replaceChildren(title, ...entry.edges.map((edge, side) => {
    const figure = document.createElement('figure');
    figure.className = 'chart';
    const caption = document.createElement('figcaption');
    const [name, numbers] = [document.createElement('span'), document.createElement('span')];
    name.textContent = `${edge.side} edge`;
    numbers.textContent = `${entry.box[side].toFixed(1)} px, std ${edge.std.toFixed(1)} px`;
    caption.append(name, numbers);
    figure.append(caption, barChart(edge, entry.box[side], entry.colour));
    return figure;
  }));
  const { level } = state.info ?? {};
  if (level && entry.edges.some((edge) => edge.interval)) {
    const legend = document.createElement('p');
    legend.className = 'hint';
    legend.textContent = `Vertical line: the box. Bracket: the ${Math.round(100 * level)} % interval.`;
    chosen.append(legend);
  }
  if (!entry.edges.length) {
    const none = document.createElement('p');
    none.textContent = 'This detector has no GFL head of gfl_det, so its edges have no distributions.';
    chosen.append(none);
  }
}

canvas.addEventListener('click', (event) => {
  const scale = state.found.width / canvas.clientWidth;
  const [x, y] = [event.offsetX * scale, event.offsetY * scale];
  const area = ({ box: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
  const under = visible().filter(({ box: [x1, y1, x2, y2] }) => x1 <= x && x <= x2 && y1 <= y && y <= y2);
  choose(under.sort((a, b) => area(a) - area(b))[0] ?? null); // the smallest is the hardest to click
});
threshold.addEventListener('input', () => {
  part('shown').textContent = Number(threshold.value).toFixed(2);
  if (!state.found) return;
  choose(state.chosen && visible().includes(state.chosen) ? state.chosen : null);
});
file.addEventListener('change', () => {
  if (file.files.length) open(file.files[0]);
  file.value = ''; // allows choosing the same file again
});
part('another').addEventListener('click', () => file.click());
['dragover', 'dragleave', 'drop'].forEach((kind) => window.addEventListener(kind, (event) => {
  event.preventDefault();
  part('stage').classList.toggle('over', kind === 'dragover');
  if (kind === 'drop' && event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
}));
window.addEventListener('paste', (event) => {
  if (event.clipboardData.files.length) open(event.clipboardData.files[0]);
});
window.addEventListener('resize', draw);

try {
  state.info = await read(await fetch('info'));
  part('title').textContent = state.info.title;
  part('limits').textContent = state.info.accepted;
  document.title = `${state.info.title} - gfl_det`;
} catch (error) {
  say('The server does not answer: is it still running?', true);
}
