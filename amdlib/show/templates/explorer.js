// The mask explorer: attention (Eq. 2 and 3), masks (Eq. 4) and what they cover, computed where they are drawn.
//
// One script for two homes: a page, where it mounts itself on `.amd-explorer[data-static]` with the JSON inside of it,
// and a notebook, where anywidget calls `render` and a kernel looks at the reader's own pictures. It loads nothing.
// In all masks true means masked. Whatever a file or a class is called goes into the page as text, never as HTML.

const PHI = { least: 0, most: 3, step: 0.01 };
const T = { least: 0.05, most: 5 };
const LOG_T = { least: Math.log10(T.least), most: Math.log10(T.most), step: 0.01 };

// ---- mathematics --------------------------------------------------------------------------------------------------

function floats(base64) {
  const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float64Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** A = H W softmax(G / T): its mean is 1. Eq. 3. Rounded to float32 where torch rounds before it exponentiates: at a small
 *  T that is 1e-5 of A. */
function attentionOf(logits, temperature) {
  const divided = logits.map((g) => Math.fround(g / Math.fround(temperature)));
  const most = divided.reduce((a, b) => Math.max(a, b), -Infinity);
  const parts = divided.map((g) => Math.exp(Math.fround(g - most)));
  const sum = parts.reduce((a, b) => a + b, 0);
  return parts.map((part) => logits.length * part / sum);
}

/** Masked where A > phi. Eq. 4. */
const maskOf = (attention, phi) => Array.from(attention, (a) => a > phi);

/** 32 bits that look random, of 32 bits: the last steps of MurmurHash3. */
function mixed(bits) {
  bits = Math.imul(bits ^ bits >>> 16, 0x85ebca6b);
  bits = Math.imul(bits ^ bits >>> 13, 0xc2b2ae35);
  return (bits ^ bits >>> 16) >>> 0;
}

/** Each position masked with probability `ratio`, as MGD masks; the same seeds give the same mask. */
function randomMask(count, ratio, ...seeds) {
  const start = seeds.reduce((bits, seed) => mixed(bits + seed + 1), 0);
  return Array.from({ length: count }, (_, i) => mixed(start + mixed(i + 1)) / 2 ** 32 < ratio);
}

/** Counts of one map: positions in the image, of these in boxes, masked, masked in boxes; what as many drawn at random
 *  would put into boxes, and the variance of that (hypergeometric). */
function count(masked, places) {
  let total = 0, hits = 0, drawn = 0, inside = 0;
  for (let i = 0; i < places.length; i++) {
    if (places[i] === '0') continue;                // padding
    const box = places[i] === '2';
    total++; hits += box; drawn += masked[i]; inside += masked[i] && box;
  }
  return withChance({ total, hits, drawn, inside });
}

function withChance({ total, hits, drawn, inside }) {
  const share = hits / Math.max(total, 1);
  return { total, hits, drawn, inside, expected: drawn * share,
    variance: drawn * share * (1 - share) * (total - drawn) / Math.max(total - 1, 1) };
}

const add = (counts) => counts.reduce((sum, one) => Object.fromEntries(
  Object.entries(one).map(([key, value]) => [key, value + (sum[key] ?? 0)])), {});

/** Shares of a count in 0 ... 1; those of boxes null where nothing is masked, or boxes hold nothing or everything. */
function shares({ total, hits, drawn, inside, expected, variance }) {
  const told = drawn > 0 && hits > 0 && hits < total;
  return { masked: total ? drawn / total : null, inside: told ? inside / drawn : null,
    chance: told ? expected / drawn : null, sd: told ? Math.sqrt(variance) / drawn : null };
}

/** Counts over phi: what is masked falls from everything to nothing as phi rises past one position after the other. */
function countsOverPhi(attention, places, phis) {
  const seen = Array.from(attention.keys()).filter((i) => places[i] !== '0');
  const order = seen.sort((a, b) => attention[b] - attention[a]);
  const total = order.length, hits = order.filter((i) => places[i] === '2').length;
  const found = [];
  let drawn = 0, inside = 0;
  for (const phi of [...phis].reverse()) {
    for (; drawn < total && attention[order[drawn]] > phi; drawn++) inside += places[order[drawn]] === '2';
    found.unshift(withChance({ total, hits, drawn, inside }));
  }
  return found;
}

// ---- small tools --------------------------------------------------------------------------------------------------

/** An element; `on...` are listeners, other values attributes; children are elements or text. */
function make(tag, attributes = {}, ...children) {
  const svg = ['svg', 'path', 'line', 'text', 'g'].includes(tag);
  const element = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children);
  return element;
}

/** How far from its mean of 1 attention is coloured, as a factor either way: 2 to 10. */
const farthest = (attention) => clamp(attention.reduce((most, a) => Math.max(most, a, 1 / a), 2), 2, 10);

/** What a map holds, computed where it does not yet. */
function kept(map, key, compute) {
  if (!map.has(key)) map.set(key, compute());
  return map.get(key);
}

const clamp = (value, least, most) => Math.min(most, Math.max(least, value));
const percent = (share, digits = 0) => share == null ? '–' : `${(100 * share).toFixed(digits)} %`;
const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const fileName = (text) => text.replace(/[^\w.=+-]+/g, '_').replace(/^\.+/, '');

/** An image and, washed out so that what lies on it is told by colour, the same in grey. */
async function load(src) {
  const image = new Image();
  image.src = src;
  await image.decode();
  const grey = make('canvas', { width: image.naturalWidth, height: image.naturalHeight });
  const context = grey.getContext('2d');
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, grey.width, grey.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const mean = (pixels.data[i] + pixels.data[i + 1] + pixels.data[i + 2]) / 3;
    pixels.data[i] = pixels.data[i + 1] = pixels.data[i + 2] = 127.5 + mean / 2;
  }
  context.putImageData(pixels, 0, 0);
  return { image, grey };
}

// ---- the explorer -------------------------------------------------------------------------------------------------

let made = 0;       // explorers on this page: ids and names of radio buttons are one's own

class Explorer {
  /** `ask`, where there is a kernel, takes a file of the reader's own; `tell` hears of each change that is complete. */
  constructor(root, data, { ask, tell } = {}) {
    Object.assign(this, { root, data, ask, tell, id: ++made });
    this.decoded = new Map();       // logits
    this.attentions = new Map();    // at the level and T that are set
    this.images = new Map();
    const { level, phi, temperature } = data;
    this.first = { picture: 0, model: 0, beside: -1, level, phi, temperature, seed: 0 };
    this.now = { ...this.first };
    root.classList.add('amd-explorer');
    this.build();
    root.explorer = this;
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.tiles);
    this.set(data.share ? this.fromAddress() : {});
  }

  remove() {
    this.resized.disconnect();
    this.root.replaceChildren();
  }

  // ---- what is computed

  logits(picture, model, level) {
    return kept(this.decoded, `${picture} ${model} ${level}`, () => floats(this.map(picture, model, level).values));
  }

  map(picture, model, level) { return this.data.pictures[picture].logits[model][level]; }

  places(picture, model, level) {
    return this.data.pictures[picture].places[this.map(picture, model, level).size.join('x')];
  }

  attention(picture, model) {
    return kept(this.attentions, `${picture} ${model}`,
      () => attentionOf(this.logits(picture, model, this.now.level), this.now.temperature));
  }

  has(model) { return this.now.level < this.data.models[model].levels.length; }

  counts(picture, model) {
    return count(maskOf(this.attention(picture, model), this.now.phi), this.places(picture, model, this.now.level));
  }

  random() {
    const { picture, model, level, seed } = this.now;
    const { length } = this.logits(picture, model, level);
    return randomMask(length, this.data.models[model].random_ratio, seed, picture, level);
  }

  /** What is set, and what follows from it: for tests, and for whoever wants numbers instead of pictures. */
  state() {
    const { picture, model, level, phi } = this.now;
    const attention = Array.from(this.attention(picture, model)), masked = maskOf(attention, phi);
    const of = (mask) => {
      const found = count(mask, this.places(picture, model, level));
      return { ...found, ...shares(found) };
    };
    return { ...this.now, name: this.data.pictures[picture].name, run: this.data.models[model].id, attention, masked,
      random: this.random(), numbers: of(masked), randomNumbers: of(this.random()) };
  }

  /** Set some of picture, model, beside (-1: none), level, phi, temperature, seed; each is brought to what can be. */
  set(changes, complete = true) {
    const { models, pictures } = this.data, now = { ...this.now };
    for (const [key, value] of Object.entries(changes)) if (key in now && Number.isFinite(value)) now[key] = value;
    now.picture = clamp(Math.round(now.picture), 0, pictures.length - 1);
    now.model = clamp(Math.round(now.model), 0, models.length - 1);
    now.beside = clamp(Math.round(now.beside), -1, models.length - 1);
    now.level = clamp(Math.round(now.level), 0, models[now.model].levels.length - 1);
    now.phi = clamp(now.phi, PHI.least, PHI.most);
    now.temperature = clamp(now.temperature, T.least, T.most);
    now.seed = clamp(Math.round(now.seed), 0, 9999);
    if (now.beside === now.model) now.beside = -1;
    const levels = now.model !== this.now.model || now.picture !== this.now.picture;
    if (now.level !== this.now.level || now.temperature !== this.now.temperature) this.attentions.clear();
    this.now = now;
    if (levels || !this.levels.childElementCount) this.buildLevels();
    this.show();
    if (complete) {
      if (this.data.share) this.toAddress();
      this.tell?.({ ...now, name: pictures[now.picture].name, run: models[now.model].id });
    }
  }

  // ---- the address of a page of its own

  fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const known = Object.keys(this.first).filter((key) => given.get(key));
    return Object.fromEntries(known.map((key) => [key, Number(given.get(key))]));
  }

  toAddress() {
    const changed = Object.entries(this.now).filter(([key, value]) => value !== this.first[key]);
    const plain = location.pathname + location.search;
    history.replaceState(null, '', changed.length ? `#${new URLSearchParams(changed)}` : plain);
  }

  // ---- what is built once

  build() {
    const { data } = this;
    this.strip = make('div', { class: 'pictures', role: 'radiogroup', 'aria-label': 'Picture' });
    data.pictures.forEach((picture) => this.addThumbnail(picture));
    const options = (first) => [...first, ...data.models.map((model, i) => make('option', { value: i }, model.label))];
    this.model = make('select', { onchange: () => this.set({ model: Number(this.model.value) }) }, ...options([]));
    this.beside = make('select', { onchange: () => this.set({ beside: Number(this.beside.value) }) },
      ...options([make('option', { value: -1 }, 'nothing')]));
    this.levels = make('div', { class: 'levels', role: 'radiogroup', 'aria-label': 'Level of the pyramid' });
    this.phi = this.slider('φ, the threshold', PHI, (phi) => ({ phi }));
    this.temperature = this.slider('T, the temperature', LOG_T,
      (log) => ({ temperature: Number((10 ** log).toPrecision(2)) }));
    this.tile = { image: this.figure('Picture'), attention: this.figure('Attention A'), mask: this.figure(''),
      random: this.figure(''), otherAttention: this.figure(''), otherMask: this.figure('') };
    this.scale = make('span', { class: 'scale', 'aria-hidden': 'true' }, make('i', {}));
    this.scale.style.background = `linear-gradient(to right, ${data.colours.heat.join(',')})`;
    this.told = make('p', { class: 'told' });
    this.agreement = make('p', { class: 'agreement' });
    const { image, attention, mask, random, otherAttention, otherMask } = this.tile;
    this.tiles = make('div', { class: 'tiles' }, image.figure, attention.figure, mask.figure, random.figure,
      this.agreement, otherAttention.figure, otherMask.figure);
    this.body = make('tbody', {});
    const head = ['masked', 'in boxes', 'at random ± 2 sd'].map((text) => make('th', { scope: 'col' }, text));
    const table = make('table', {},
      make('thead', {}, make('tr', {}, make('td', {}), ...head, make('td', {}))), this.body);
    const line = (name, text) => make('span', { class: name }, text);
    this.curve = make('svg', { viewBox: '0 0 320 122', role: 'img', 'aria-label': '' });
    this.reading = this.buildReading();
    this.message = make('span', { class: 'message', role: 'status' });
    const buttons = make('div', { class: 'buttons' },
      make('button', { type: 'button', onclick: () => this.set({ seed: this.now.seed + 1 }) }, 'Draw again'),
      make('button', { type: 'button', onclick: () => this.save() }, 'Save picture'),
      make('button', { type: 'button', onclick: () => this.set({ ...this.first }) }, 'Reset'),
      ...this.own(), this.message);
    this.root.replaceChildren(make('div', { class: 'view' },
      this.strip,
      make('div', { class: 'controls' },
        make('div', { class: 'choices' },
          make('label', {}, 'Attention of', this.model), make('label', {}, 'Beside it', this.beside)),
        this.levels, this.phi.label, this.temperature.label),
      make('div', { class: 'main' },
        this.tiles,
        make('div', { class: 'side' },
          make('div', {}, this.told, table, buttons),
          make('div', {}, this.curve, make('p', { class: 'key' }, line('masked', 'masked'),
            line('inside', 'of these in boxes'), line('chance', 'as many at random, ± 2 sd')))),
        this.reading)));
    this.root.style.setProperty('--mask', data.colours.mask);
  }

  /** A picture of the reader's own, where a kernel can look at it. */
  own() {
    if (!this.ask) return [];
    const input = make('input', { type: 'file', accept: 'image/*', onchange: async () => {
      const [file] = input.files;
      if (!file) return;
      this.message.textContent = `looking at ${file.name} …`;
      this.ask(file.name, await file.arrayBuffer());
      input.value = '';
    } });
    return [make('label', { class: 'button' }, 'Own picture', input)];
  }

  /** The kernel's answer: a picture to show, or why there is none. */
  answer({ picture, error }) {
    this.message.textContent = error ?? '';
    if (!picture) return;
    this.data.pictures.push(picture);
    this.addThumbnail(picture);
    this.set({ picture: this.data.pictures.length - 1 });
  }

  addThumbnail(picture) {
    const number = this.strip.childElementCount;
    const input = make('input', { type: 'radio', name: `picture${this.id}`, value: number, 'aria-label': picture.name,
      onchange: () => this.set({ picture: number }) });
    const image = make('img', { src: picture.src, alt: '', draggable: 'false' });
    this.strip.append(make('label', { title: picture.name }, input, image));
  }

  buildLevels() {
    const { picture, model } = this.now, [padded] = this.data.pictures[picture].padded_px;
    this.levels.replaceChildren(...this.data.models[model].levels.map((number, at) => {
      const [height, width] = this.map(picture, model, at).size, stride = `${+(padded / width).toFixed(1)} px`;
      const input = make('input', { type: 'radio', name: `level${this.id}`, value: at,
        'aria-label': `level ${number}: ${height} x ${width} positions, stride ${stride}`,
        onchange: () => this.set({ level: at }) });
      return make('label', {}, input, make('span', {}, make('b', {}, `level ${number}`),
        make('small', {}, `${height}×${width}`), make('small', {}, stride)));
    }));
  }

  slider(name, { least, most, step }, changes) {
    const change = (complete) => () => this.set(changes(Number(input.value)), complete);
    const told = make('output', {}), input = make('input', { type: 'range', min: least, max: most, step,
      'aria-label': name, oninput: change(false), onchange: change(true) });
    return { input, told, label: make('label', { class: 'slider' }, make('span', {}, name, told), input) };
  }

  figure(title) {
    const canvas = make('canvas', { role: 'img' }), caption = make('figcaption', {}, title);
    return { canvas, caption, figure: make('figure', {}, canvas, caption) };
  }

  buildReading() {
    const { rule, profile, data } = this.data;
    return make('details', { open: this.root.clientWidth > 1088 }, make('summary', {}, 'How to read this'),
      make('p', {}, 'A = H W softmax(G / T) over a level, with G the mean over channels of the absolute feature (Eq. 2 '
        + 'and 3); its mean is 1, its colours are logarithmic. AMD masks where A > φ (Eq. 4). MGD masks each position '
        + 'with the same probability. A position lies in a box if its centre does; padding is left out of the numbers. '
        + '"At random" is what as many positions drawn anywhere in the same picture would give, ± 2 standard '
        + 'deviations. Neighbours are alike and masked together, so chance is wider than that: one picture beyond it '
        + 'is no finding.'),
      make('p', {}, `${rule ? `${rule}. ` : ''}Profile ${profile}, data set ${data}: it is their networks that `
        + 'look. Features are divided as in training at this profile, so that T and φ mean here what they '
        + 'mean there. Where a mask lies says nothing about what masking there does for the student. Computed in your '
        + 'browser.'));
  }

  // ---- what follows every change

  show() {
    const { picture, model, beside, level, phi, temperature } = this.now, { models, pictures } = this.data;
    for (const [strip, value] of [[this.strip, picture], [this.levels, level]]) {
      const input = strip.querySelectorAll('input')[value];
      if (!input.checked) {
        input.checked = true;
        const box = input.parentElement;    // scrollIntoView would move the page as well
        strip.scrollTo?.({ left: box.offsetLeft - strip.offsetLeft - (strip.clientWidth - box.clientWidth) / 2 });
      }
    }
    this.model.value = model;
    this.beside.value = beside;
    for (const [slider, value, text] of [[this.phi, phi, phi.toFixed(2)],
      [this.temperature, Math.log10(temperature), String(Number(temperature.toPrecision(3)))]]) {
      if (Math.abs(slider.input.value - value) > 0.0051) slider.input.value = value;
      slider.input.setAttribute('aria-valuetext', text);
      slider.told.textContent = ` = ${text}`;
    }
    this.tile.mask.caption.textContent = `Masked where A > ${phi.toFixed(2)}`;
    this.tile.image.caption.textContent = pictures[picture].name;
    this.tile.random.caption.textContent = `At random, as MGD: ${percent(models[model].random_ratio)}`;
    const two = beside >= 0;
    if (two && !this.root.hasAttribute('data-beside')) this.reading.open = false;      // their place is needed
    this.root.toggleAttribute('data-beside', two);
    if (two) {
      this.tile.otherAttention.caption.textContent = `A of ${models[beside].label}`;
      this.tile.otherMask.caption.textContent = 'Masked by its attention';
    }
    this.showNumbers();
    this.showCurve();
    this.draw();
  }

  showNumbers() {
    const { picture, model, beside, phi } = this.now, { models, pictures } = this.data, two = beside >= 0;
    const own = this.counts(picture, model), all = Array.from(pictures.keys()).filter((i) => pictures[i].boxes.length);
    const random = count(this.random(), this.places(picture, model, this.now.level));
    const lines = [['AMD', own], ['MGD', random]];
    if (all.length > 1) lines.splice(1, 0, [`AMD, all ${all.length}`, add(all.map((i) => this.counts(i, model)))]);
    if (two) lines.push(['beside it', this.has(beside) ? this.counts(picture, beside) : null]);
    this.body.replaceChildren(...lines.map(([name, counts]) => {
      const { masked, inside, chance, sd } = counts ? shares(counts) : {};
      const apart = inside - chance;
      const far = inside == null ? '' : Math.abs(apart) <= 2 * sd ? 'within' : apart > 0 ? 'above' : 'below';
      const random = chance == null ? '–' : `${(100 * chance).toFixed(0)} ± ${(200 * sd).toFixed(0)} %`;
      const cells = [percent(masked), percent(inside), random, far].map((text) => make('td', {}, text));
      return make('tr', {}, make('th', { scope: 'row' }, name), ...cells);
    }));
    const boxless = !pictures[picture].boxes.length;    // a picture of the reader's own
    this.root.firstChild.classList.toggle('boxless', boxless);
    this.told.textContent = `${own.drawn} of ${own.total} positions are masked.`
      + (boxless ? ' No boxes are known here: nothing tells whether these lie on objects.'
        : own.hits === 0 ? ' No position lies in a box.' : own.hits === own.total ? ' All positions lie in boxes.' : '');
    if (two) this.showAgreement();
  }

  showAgreement() {
    const { picture, model, beside, level, phi } = this.now, { label } = this.data.models[beside];
    if (!this.has(beside) || !this.sameGrid()) {
      this.agreement.textContent = `${label} has no such level.`;
      return;
    }
    const [first, second] = [model, beside].map((one) => maskOf(this.attention(picture, one), phi));
    const places = this.places(picture, model, level);
    const of = (which) => first.filter((_, i) => places[i] !== '0' && which(first[i], second[i])).length;
    this.agreement.textContent = `${label}: both mask ${of((a, b) => a && b)}, `
      + `the first alone ${of((a, b) => a && !b)}, this one alone ${of((a, b) => !a && b)} `
      + `of ${of(() => true)} positions.`;
  }

  sameGrid() {
    const { picture, model, beside, level } = this.now;
    return String(this.map(picture, model, level).size) === String(this.map(picture, beside, level).size);
  }

  showCurve() {
    const { picture, model, level, temperature, phi } = this.now;
    const key = `${picture} ${model} ${level} ${temperature}`;
    const x = (value) => 30 + 284 * value / PHI.most, y = (share) => 6 + 90 * (1 - share);
    if (this.curveOf !== key) {         // a drag of phi moves the marker alone
      this.curveOf = key;
      const phis = Array.from({ length: 121 }, (_, i) => i * PHI.most / 120);
      const found = countsOverPhi(this.attention(picture, model), this.places(picture, model, level), phis).map(shares);
      const at = (value, share) => `${x(value).toFixed(1)} ${y(clamp(share, 0, 1)).toFixed(1)}`;
      const line = (pick) => found.map((one, i) => pick(one) == null ? ''
        : `${i && pick(found[i - 1]) != null ? 'L' : 'M'}${at(phis[i], pick(one))}`).join('');
      const some = phis.map((value, i) => [value, found[i]]).filter(([, one]) => one.chance != null);
      const edge = (side) => ([value, { chance, sd }]) => at(value, chance + side * 2 * sd);
      const band = some.length ? `M${[...some.map(edge(1)), ...[...some].reverse().map(edge(-1))].join('L')}Z` : '';
      this.marker = make('line', { class: 'now', y1: 2, y2: 100 });
      this.curve.replaceChildren(
        ...[0, 0.5, 1].flatMap((share) => [make('line', { class: 'grid', x1: 30, x2: 314, y1: y(share), y2: y(share) }),
          make('text', { x: 26, y: y(share) + 3.5, 'text-anchor': 'end' }, String(100 * share))]),
        ...[0, 1, 2, 3].map((value) => make('text', { x: x(value), y: 108, 'text-anchor': 'middle' }, String(value))),
        make('text', { x: 172, y: 119, 'text-anchor': 'middle' }, 'φ; positions in percent, this picture'),
        make('path', { class: 'band', d: band }),
        ...['chance', 'masked', 'inside'].map((name) => make('path', { class: name, d: line((one) => one[name]) })),
        this.marker);
    }
    this.marker.setAttribute('x1', x(phi));
    this.marker.setAttribute('x2', x(phi));
    const { masked, inside, chance } = shares(this.counts(picture, model));
    this.curve.setAttribute('aria-label', `Shares over phi. At ${phi.toFixed(2)}: ${percent(masked)} masked, of these `
      + `${percent(inside)} in boxes, ${percent(chance)} at random.`);
  }

  // ---- drawing

  draw() {
    const { picture } = this.now, { src } = this.data.pictures[picture];
    if (!this.images.has(src)) {
      this.images.set(src, null);
      load(src).then((loaded) => { this.images.set(src, loaded); this.draw(); },
        () => { this.message.textContent = 'this picture cannot be shown'; });
    }
    if (!this.images.get(src)) return;
    const dense = window.devicePixelRatio || 1;
    for (const [name, { canvas }] of Object.entries(this.tile)) {
      const side = Math.round(canvas.clientWidth * dense);
      if (!side || name.startsWith('other') && this.now.beside < 0) continue;     // not shown
      if (canvas.width !== side) canvas.width = canvas.height = side;
      this.paint(name, canvas.getContext('2d'), 0, 0, side);
      canvas.setAttribute('aria-label', `${name}: ${this.data.pictures[picture].name}`);
    }
  }

  /** One tile into a square of a canvas. */
  paint(name, context, left, top, side) {
    const { picture, model, beside, phi } = this.now;
    const { boxes, size_px: [width, height], src } = this.data.pictures[picture];
    const other = name.startsWith('other'), shown = other ? beside : model;
    const { image, grey } = this.images.get(src), scale = side / Math.max(width, height);
    context.save();
    context.clearRect(left, top, side, side);
    context.translate(left + (side - width * scale) / 2, top + (side - height * scale) / 2);
    context.scale(scale, scale);
    context.beginPath();
    context.rect(0, 0, width, height);
    context.clip();
    context.imageSmoothingEnabled = false;
    context.drawImage(name === 'image' ? image : grey, 0, 0, width, height);
    if (name !== 'image' && this.has(shown)) {
      const attention = this.attention(picture, shown), { colours } = this.data;
      if (name.endsWith('ttention')) {
        const both = [model, beside].filter((one) => one >= 0 && this.has(one));     // one scale of colours
        const most = Math.max(...both.map((one) => farthest(this.attention(picture, one))));
        const heat = colours.heat.map(rgb);
        const at = (a) => clamp((1 + Math.log(a) / Math.log(most)) / 2, 0, 1);
        context.globalAlpha = 0.7;
        this.paintMap(context, shown, (i) => [...heat[Math.round(at(attention[i]) * (heat.length - 1))], 255]);
        if (!other) this.showScale(most, at(phi));
      } else {
        const masked = name === 'random' ? this.random() : maskOf(attention, phi), mask = rgb(colours.mask);
        context.globalAlpha = 0.75;
        this.paintMap(context, shown, (i) => [...mask, masked[i] ? 255 : 0]);
      }
      context.globalAlpha = 1;
    }
    const pixel = Math.max(side / 240, 1) / scale;
    for (const [x1, y1, x2, y2] of boxes) {
      for (const [colour, line] of [['#000', 3], [this.data.colours.box, 1.5]]) {
        context.strokeStyle = colour;
        context.lineWidth = line * pixel;
        context.strokeRect(x1, y1, x2 - x1, y2 - y1);
      }
    }
    if (name === 'image') {
      context.font = `${12 * pixel}px system-ui, sans-serif`;
      context.textBaseline = 'top';
      const written = [];
      for (const [x1, y1, , y2, label] of boxes) {
        const wide = context.measureText(label).width, high = 13 * pixel;
        const x = clamp(x1 + 3 * pixel, 0, Math.max(0, width - wide - 2 * pixel));
        const free = (y) => !written.some(([left, top, right]) => x < right && left < x + wide
          && Math.abs(y - top) < high);
        const y = [y1 + 3 * pixel, y2 - high - pixel, y1 - high - pixel].find(free) ?? y1 + 3 * pixel;
        written.push([x, y, x + wide]);
        context.lineWidth = 3 * pixel;
        context.strokeStyle = '#000';
        context.fillStyle = '#fff';
        context.strokeText(label, x, y);
        context.fillText(label, x, y);
      }
    }
    context.restore();
  }

  /** The colours' ends, and where phi is between them. */
  showScale(most, phi) {
    const [least, largest] = [1 / most, most].map((a) => String(Number(a.toPrecision(2))));
    this.scale.firstChild.style.left = `${100 * phi}%`;
    if (this.scaleOf === most && this.scale.isConnected) return;
    this.scaleOf = most;
    this.tile.attention.caption.replaceChildren('Attention A', this.scale, `${least} to ${largest}`);
  }

  /** A colour (r, g, b, opacity of 255) a position, over the padded image. */
  paintMap(context, model, colour) {
    const { picture, level } = this.now, [height, width] = this.map(picture, model, level).size;
    const canvas = make('canvas', { width, height }), small = canvas.getContext('2d');
    const pixels = small.createImageData(width, height);
    for (let i = 0; i < height * width; i++) pixels.data.set(colour(i), 4 * i);
    small.putImageData(pixels, 0, 0);
    context.drawImage(canvas, 0, 0, ...this.data.pictures[picture].padded_px);
  }

  // ---- a picture to keep

  /** Download the tiles that are shown with what is set; the file's name says it too. */
  save() {
    const { picture, model, beside, level, phi, temperature, seed } = this.now, { models, pictures } = this.data;
    if (!this.images.get(pictures[picture].src)) return;
    const names = ['image', 'attention', 'mask', 'random', ...beside >= 0 ? ['otherAttention', 'otherMask'] : []];
    const side = 400, gap = 16, line = 26, rows = beside >= 0 ? 2 : 1;
    const canvas = make('canvas', { width: 4 * (side + gap) + gap,
      height: 2 * line + gap + rows * (side + line + gap) });
    const context = canvas.getContext('2d');
    const write = (text, x, y, font) => {
      context.font = `${font} system-ui, sans-serif`;
      context.fillStyle = '#111';
      context.fillText(text, x, y);
    };
    const { masked, inside, chance, sd } = shares(this.counts(picture, model));
    const { id, levels } = models[model], { name } = pictures[picture];
    const at = `φ = ${phi.toFixed(2)}, T = ${temperature}`;
    const random = `${(100 * chance).toFixed(1)} ± ${(200 * sd).toFixed(1)} % at random (2 sd)`;
    context.fillStyle = '#fff';
    context.fillRect(0, 0, canvas.width, canvas.height);
    write(`${name}: ${id}, level ${levels[level]}, ${at}`, gap, line, 'bold 20px');
    write(`${percent(masked, 1)} masked${inside == null ? '' : `; of these ${percent(inside, 1)} in boxes, ${random}`}`,
      gap, 2 * line, '18px');
    names.forEach((tile, i) => {
      const x = gap + (i < 4 ? i : i - 3) * (side + gap), y = 2 * line + gap + (i < 4 ? 0 : side + line + gap);
      this.paint(tile, context, x, y, side);
      write([...this.tile[tile].caption.childNodes].map((part) => part.textContent).filter(Boolean).join(' '), x,
        y + side + 20, '16px');
    });
    const set = [`phi=${phi.toFixed(2)}`, `T=${temperature}`, `level=${levels[level]}`, `seed=${seed}`];
    const file = fileName(['mask', id, name.replace(/\.\w+$/, ''), ...set].join('_'));
    canvas.toBlob((blob) => {
      const url = URL.createObjectURL(blob);
      make('a', { href: url, download: `${file}.png` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
    });
  }
}

// ---- its two homes ------------------------------------------------------------------------------------------------

/** In a notebook; anywidget calls it, and what it returns when the cell goes. */
function render({ model, el }) {
  const root = make('div', {});
  el.append(root);
  const view = new Explorer(root, structuredClone(model.get('data')), {
    ask: (name, content) => model.send({ name }, undefined, [content]),
    tell: (state) => { model.set('state', state); model.save_changes(); } });
  const answer = (message) => view.answer(message);
  model.on('msg:custom', answer);
  return () => { model.off('msg:custom', answer); view.remove(); };
}

for (const root of document.querySelectorAll('.amd-explorer[data-static]')) {
  root.removeAttribute('data-static');
  new Explorer(root, JSON.parse(root.querySelector('script').textContent));
}

export default { render };
