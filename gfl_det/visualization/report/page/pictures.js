'use strict';
// Pictures with their boxes, drawn at the size at which they are shown, and the dialog that enlarges them.

const LETTERS = 11.5; // px of the screen
const CROWDING = 0.1; // a label of which more is covered by others waits until the picture is enlarged
const MAX_SIDE = 2400; // px of a canvas
const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8];
const MISSED = 5;

// Detections and gt boxes of a picture as objects, made once.
function boxesOf(data, picture) {
  if (!picture.boxes) {
    const shared = (label) => ({label, name: data.classes[label], colour: data.colours[label]});
    const edge = ([start, step, ...shares]) => {
      const sum = shares.reduce((a, b) => a + b, 0);
      return {start, step, probabilities: shares.map((value) => value / sum)};
    };
    picture.boxes = {
      found: picture.found.map(([label, score, box, kind, row, edges]) => ({...shared(label), score, box, kind, row,
        edges: edges.map(edge), text: `${data.classes[label]} ${score.toFixed(2)}`})),
      truths: picture.truths.map(([label, box, cover, missed, lost]) => ({...shared(label), box, cover, missed, lost,
        edges: [], text: cover === null ? `${data.classes[label]} (crowd)` : data.classes[label]})),
    };
  }
  return picture.boxes;
}

// Detections at a cut; without one, at the common threshold.
function shownBoxes(data, picture, cut) {
  const {found} = boxesOf(data, picture);
  return cut === null ? found.slice(0, picture.kept) : found.filter((each) => each.score >= cut);
}

// Errors at a cut: {kind, label, box, score}.
function errorsAt(data, picture, cut) {
  const missed = boxesOf(data, picture).truths.filter((each) => each.cover !== null && (cut === null ? each.missed : each.cover < cut));
  return [...shownBoxes(data, picture, cut).filter((each) => each.kind >= 0),
    ...missed.map((each) => ({...each, kind: MISSED, score: null}))];
}

// Boxes of a cell of the confusion matrix, which is counted at the common threshold.
function boxesOfCell(data, picture, [row, column]) {
  if (column === data.classes.length) {
    return boxesOf(data, picture).truths.filter((each) => each.lost && each.label === row).map((each) => ({...each, kind: null, score: null}));
  }
  return shownBoxes(data, picture, null).filter((each) => each.row === row && each.label === column).map((each) => ({...each, kind: null}));
}

const near = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) {
    if (!isIntersecting || target.near) continue;
    target.near = true;
    if (target.shownWidth) target.render(target.shownWidth);
  }
}, {rootMargin: '400px'});

function counted(boxes) {
  const numbers = new Map();
  for (const {name} of boxes) numbers.set(name, (numbers.get(name) || 0) + 1);
  return boxes.length ? [...numbers].map(([name, value]) => `${value} ${name}`).join(', ') : 'no boxes';
}

/* A picture with boxes. what: {truths, found, soft}, which of them are drawn; outlined: boxes with a dashed frame. */
function scene(data, picture, what, cut, outlined = []) {
  const [width, height] = picture.size;
  const {truths} = boxesOf(data, picture);
  const found = what.found ? shownBoxes(data, picture, cut) : [];
  const texts = [what.truths ? `ground truth: ${counted(truths)}` : '', what.found ? `prediction: ${counted(found)}` : ''];
  const image = make('img', {src: `data:image/jpeg;base64,${picture.jpeg}`, alt: '', width, height});
  const canvas = make('canvas', {role: 'img', 'aria-label': `${data.images[picture.image][0]}, ${texts.filter(Boolean).join('; ')}`});
  const holder = make('div', {class: 'holder'}, image, canvas, outlined.length ? outline(data, picture, outlined) : null);
  holder.render = async (shown) => {
    if (!holder.near) return;
    await image.decode().catch(() => {});
    const ratio = Math.min(window.devicePixelRatio || 1, MAX_SIDE / shown);
    const scale = shown * ratio / width;
    canvas.width = Math.round(shown * ratio);
    canvas.height = Math.round(height * scale);
    const paper = canvas.getContext('2d', {willReadFrequently: true});
    paper.imageSmoothingQuality = 'high';
    paper.drawImage(image, 0, 0, canvas.width, canvas.height);
    const edged = what.soft ? found.filter((each) => each.edges.length) : [];
    if (edged.length) {
      const pixels = paper.getImageData(0, 0, canvas.width, canvas.height);
      drawing.blendEdges(pixels, edged, scale);
      paper.putImageData(pixels, 0, 0);
    }
    drawing.drawFrames(paper, found, scale, ratio);
    if (what.truths) {
      if (what.found) paper.setLineDash([6 * ratio, 4 * ratio]);
      drawing.drawFrames(paper, truths, scale, ratio);
      paper.setLineDash([]);
    }
    drawing.drawLabels(paper, what.found ? found : truths, scale, LETTERS * ratio, CROWDING);
    canvas.dataset.drawn = 'yes';
  };
  redraw.observe(holder);
  near.observe(holder);
  return holder;
}

function outline(data, picture, boxes) {
  const [width, height] = picture.size;
  const frames = boxes.flatMap(({kind, name, box: [x1, y1, x2, y2], score}) => ['under', 'over'].map((type) =>
    draw('rect', {class: type, x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0)},
      draw('title', {}, `${kind === null ? '' : `${data.kinds[kind]}: `}${name}${score === null ? '' : ` ${share(score)}`}`))));
  return draw('svg', {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: 'none', 'aria-hidden': 'true'}, frames);
}

/* The dialog with one picture. list: the pictures that can be paged through; outlinedOf: picture -> boxes with a dashed frame. */
function enlarge(data, list, place, what, cut, outlinedOf) {
  let zoom = 0, centre = [0.5, 0.5];
  const shown = {...what};
  const title = make('h3', {id: 'zoom-title'});
  const stage = make('div', {class: 'stage', tabindex: 0, role: 'region', 'aria-label': 'Picture, scrollable'});
  const button = (text, label, onclick) => make('button', {type: 'button', 'aria-label': label, title: label, onclick}, text);
  const tick = (key, text) => make('label', {}, make('input', {type: 'checkbox', checked: shown[key] ? '' : null,
    onchange: (event) => { shown[key] = event.target.checked; show(); }}), ` ${text}`);
  const [back, on] = [button('‹', 'Previous picture', () => turn(-1)), button('›', 'Next picture', () => turn(1))];
  const level = make('output', {'aria-live': 'polite'});
  const dialog = make('dialog', {class: 'zoom', 'aria-labelledby': 'zoom-title'},
    make('div', {class: 'tools'}, title, make('span', {class: 'ticks'}, tick('truths', 'ground truth'), tick('found', 'prediction'), tick('soft', 'soft edges')),
      make('span', {class: 'ticks'}, back, on, button('−', 'Zoom out', () => change(zoom - 1)), level, button('+', 'Zoom in', () => change(zoom + 1)),
        button('✕', 'Close', () => dialog.close()))), stage);

  function show() {
    const picture = list[place], row = data.images[picture.image];
    title.textContent = `${row[0]} · quality ${share(row[1])}`;
    [back.disabled, on.disabled] = [place === 0, place === list.length - 1];
    stage.replaceChildren(scene(data, picture, shown, cut, outlinedOf(picture, shown)));
    fit();
  }
  function fit() {
    const [width, height] = list[place].size;
    const base = Math.min(stage.clientWidth, stage.clientHeight * width / height);
    const wide = Math.round(base * ZOOMS[zoom]);
    stage.firstChild.style.width = `${wide}px`;
    level.textContent = `${Math.round(100 * ZOOMS[zoom])} %`;
    stage.scrollLeft = centre[0] * wide - stage.clientWidth / 2;
    stage.scrollTop = centre[1] * wide * height / width - stage.clientHeight / 2;
  }
  function change(to, around) {
    const box = stage.firstChild.getBoundingClientRect(), frame = stage.getBoundingClientRect();
    centre = around || [(frame.left + frame.width / 2 - box.left) / box.width, (frame.top + frame.height / 2 - box.top) / box.height];
    zoom = Math.max(0, Math.min(ZOOMS.length - 1, to));
    fit();
  }
  function turn(step) {
    place = Math.max(0, Math.min(list.length - 1, place + step));
    [zoom, centre] = [0, [0.5, 0.5]];
    show();
  }
  stage.addEventListener('click', (event) => {
    const box = stage.firstChild.getBoundingClientRect();
    change(zoom === ZOOMS.length - 1 ? 0 : zoom + 1, [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
  });
  dialog.addEventListener('keydown', (event) => {
    const act = {'+': () => change(zoom + 1), '=': () => change(zoom + 1), '-': () => change(zoom - 1), 0: () => change(0),
      PageDown: () => turn(1), PageUp: () => turn(-1)}[event.key];
    if (act && !event.ctrlKey && !event.metaKey) { act(); event.preventDefault(); }
  });
  dialog.addEventListener('close', () => { window.removeEventListener('resize', fit); dialog.remove(); });
  window.addEventListener('resize', fit);
  document.body.append(dialog);
  dialog.showModal();
  show();
  stage.focus({preventScroll: true});
}
