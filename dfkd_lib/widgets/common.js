// What all widgets share; Python puts it before each widget's own module. Whatever comes from data is set as text, never
// as markup.

// -- elements ----------------------------------------------------------------------------------------------------------
const make = (tag, props = {}, ...children) => {
  const { aria = {}, data = {}, ...own } = props, element = Object.assign(document.createElement(tag), own);
  for (const [name, value] of Object.entries(aria)) element.setAttribute(name === "role" ? name : `aria-${name}`, value);
  Object.assign(element.dataset, data);
  element.append(...children);
  return element;
};
const svg = (tag, attributes = {}, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const div = (className, ...children) => make("div", { className }, ...children);
const labelled = (text, ...children) => make("label", {}, make("span", { textContent: text }), ...children);
const button = (className, textContent, onclick, title = "") => make("button", { className, textContent, onclick, title });
const select = (className, onpick) => make("select", { className, onchange: (event) => onpick(event.target.value) });
const slider = (className, label, props, onmove) => make("input", { type: "range", className, aria: { label }, ...props,
  oninput: (event) => onmove(Number(event.target.value)) });

// Options other than `possible` and the chosen one cannot be chosen.
function fill(element, options, value, possible = null) {
  element.replaceChildren(...options.map(([key, text]) => make("option", { value: key, textContent: text,
    disabled: possible !== null && key !== value && !possible.includes(key) })));
  element.value = String(value);
}

// -- numbers -----------------------------------------------------------------------------------------------------------
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const grouped = (value) => value.toLocaleString("en");
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const largest = (values) => values.reduce((a, b) => Math.max(a, b), 1e-12);
const array = (view, Kind) => new Kind(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

// -- canvases ----------------------------------------------------------------------------------------------------------
// A canvas of CSS size width x height, sharp on any screen; returns its context in CSS pixels.
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1, context = canvas.getContext("2d");
  Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.imageSmoothingEnabled = false;
  return context;
}

// RGB bytes as a small canvas that can be drawn at any size.
function raster(width, height, rgb) {
  const canvas = make("canvas", { width, height }), context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], 255], 4 * i);
  context.putImageData(image, 0, 0);
  return canvas;
}

// Values over a grid [rows, columns] through the colour map, as shares of `top`, into the place [x, y, width, height].
function heat(context, table, values, [rows, columns], top, place) {
  const rgb = new Uint8Array(3 * rows * columns);
  for (let i = 0; i < rows * columns; i++) rgb.set(table[Math.round(255 * Math.min(1, values[i] / (top || 1)))], 3 * i);
  context.drawImage(raster(columns, rows, rgb), ...place);
}

// -- boxes: cxcywh as shares of a picture -------------------------------------------------------------------------------
const corner = ([cx, cy, w, h], width, height) => [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height];

// The place of the smallest box under a point, or null.
function smallest(boxes, x, y) {
  const hits = boxes.map(([cx, cy, w, h], i) => [w * h, i, Math.abs(x - cx) <= w / 2 && Math.abs(y - cy) <= h / 2])
    .filter(([, , hit]) => hit).sort((a, b) => a[0] - b[0]);
  return hits.length ? hits[0][1] : null;
}
function outline(context, box, width, height, color, thick, dash = []) {
  const place = corner(box, width, height);
  thick = Math.min(thick, Math.max(1, Math.min(place[2], place[3]) / 9));  // a small box is not drowned by its own line
  for (const [style, line, pattern] of [["rgba(255, 255, 255, 0.75)", thick + Math.min(1.6, thick), []], [color, thick, dash]]) {
    Object.assign(context, { strokeStyle: style, lineWidth: line });
    context.setLineDash(pattern);
    context.strokeRect(...place);
  }
  context.setLineDash([]);
}
const ink = (color) => {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#000" : "#fff";
};
// A name beside its box, inside the picture and off what is taken ([left, top, right, bottom, weight]) where there is room.
function tag(context, box, text, width, height, color, taken) {
  context.font = "12px sans-serif";
  const wide = context.measureText(text).width + 8, high = 17, [x, y, w, h] = corner(box, width, height);
  const inner = [y, y + h - high], tops = [y - high - 2, y + h + 2, ...inner];
  const tried = [...[x, x + w - wide].flatMap((left) => tops.map((top) => [left, top])),
    ...inner.flatMap((top) => [[x + w + 2, top], [x - wide - 2, top]])]
    .map(([left, top]) => [Math.max(0, Math.min(left, width - wide)), Math.max(0, Math.min(top, height - high))]);
  // What it would hide, other names above all; the first places are the likeliest to be looked at.
  const hidden = ([left, top], [l, t, r, b, weight]) => weight * Math.max(0, Math.min(left + wide, r) - Math.max(left, l))
    * Math.max(0, Math.min(top + high, b) - Math.max(top, t));
  const costs = tried.map((at, i) => taken.reduce((sum, other) => sum + hidden(at, other), 0.02 * i * wide * high));
  const [left, top] = tried[costs.indexOf(Math.min(...costs))];
  taken.push([left, top, left + wide, top + high, 3]);
  context.fillStyle = color;
  context.fillRect(left, top, wide, high);
  context.fillStyle = ink(color);
  context.fillText(text, left + 4, top + 12.5);
}

// -- thumbnails to pick from, by mouse or by keys ------------------------------------------------------------------------
// items: { id, picture (a canvas or undefined), title, text, bad }; steps: {key: places to go}; `go` gets an id, `step` a
// number of places.
function thumbnails(className, label, side, steps, go, step) {
  const element = make("div", { className: `thumbs ${className}`, aria: { role: "group", label } });
  element.onkeydown = (event) => {
    const by = steps()[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  };
  function draw(items, chosen) {
    const focused = element.contains(document.activeElement);
    element.replaceChildren(...items.map(({ id, picture, title, text, bad }) => {
      const canvas = make("canvas"), context = sized(canvas, side, side), current = id === chosen;
      if (picture) context.drawImage(picture, 0, 0);
      return make("button", { title, className: bad ? "bad" : "good", onclick: () => go(id), tabIndex: current ? 0 : -1,
        data: { id }, aria: { label: title, current } }, canvas, ...(text ? [make("span", { textContent: text })] : []));
    }));
    if (items.length && !items.some((item) => item.id === chosen)) element.firstChild.tabIndex = 0;
    if (focused) element.querySelector("[aria-current=true]")?.focus();
  }
  return { element, draw };
}

// -- the kernel --------------------------------------------------------------------------------------------------------
// Asks the kernel; of one kind of question one is under way, and of further ones the latest waits (changes are merged).
function asker(model, waits = () => {}) {
  const open = new Map(), next = new Map();
  let serial = 0;
  function ask(content) {
    const now = performance.now(), asked = open.get(content.do);
    if (asked && now - asked.at < 10000) {
      const changes = { ...next.get(content.do)?.changes, ...content.changes };
      if (JSON.stringify(content) !== asked.text) next.set(content.do, content.changes ? { ...content, changes } : content);
      return;
    }
    open.set(content.do, { id: ++serial, at: now, text: JSON.stringify(content) });
    waits(open.size);
    model.send({ ...content, id: serial });
  }
  // The milliseconds that an answered question took.
  function answered(id) {
    const [kind, asked] = [...open].find(([, one]) => one.id === id) ?? [];
    if (!kind) return null;
    const wish = next.get(kind);
    open.delete(kind);
    next.delete(kind);
    waits(open.size);
    if (wish) ask(wish);
    return performance.now() - asked.at;
  }
  return { ask, answered };
}

// Errors in place, and where figures went: elements that follow the traits of these names.
function reports(model) {
  const error = make("div", { className: "error", aria: { role: "alert" } });
  const saved = make("span", { className: "saved", aria: { live: "polite" } });
  let own = "";  // what is wrong here, before any kernel is asked
  const show = () => {
    error.textContent = own || model.get("error");
    saved.textContent = model.get("saved");
  };
  return { error, saved, show, problem: (text) => { own = text; show(); } };
}

// Fills the widget's element and listens; returns what takes all of it away again. `resized` is called for a new width.
function mount(model, el, name, label, children, listeners, resized = null) {
  el.classList.add("dfkd", `dfkd-${name}`);
  el.setAttribute("role", "group");
  el.setAttribute("aria-label", label);
  el.append(...children);
  // A plain key is the control's own: JupyterLab would move a cell with the arrow that moves a slider.
  const keys = (event) => { if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation(); };
  el.addEventListener("keydown", keys);
  const each = (act) => Object.entries(listeners).forEach(([names, listener]) => names.split(" ").forEach((one) => model[act](one, listener)));
  each("on");
  let wide = 0;
  const observer = new ResizeObserver(() => {
    if (Math.abs(el.clientWidth - wide) <= 2) return;
    wide = el.clientWidth;
    resized?.();
  });
  observer.observe(el);
  return () => {
    observer.disconnect();
    el.removeEventListener("keydown", keys);
    each("off");
  };
}
