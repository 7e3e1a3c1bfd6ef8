// The front end of AttentionExplorer. The kernel sends arrays, this draws them; hovering needs no kernel at all, since the
// attention of every token at the chosen block and head is already here.

const PICTURE = 205;       // side of the image and of the weights, in CSS pixels
const THUMBS_A_ROW = 5;
const CHOSEN = "#56b4e9";

const make = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children);
  return element;
};
const labelled = (text, ...children) => make("label", {}, text, ...children);
const percent = (value) => `${(100 * value).toPrecision(3)} %`;
const bytes = (view) => view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);

function fill(select, options, value) {
  select.replaceChildren(...options.map(([key, text]) => make("option", { value: key, textContent: text })));
  select.value = value;
}

// A canvas of CSS size width x height, sharp on any screen; returns its context in CSS pixels.
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.imageSmoothingEnabled = false;
  return context;
}

// RGB bytes, or values in [0, 1] through the colour map, as a small canvas that can be drawn at any size.
function raster(width, height, colour) {
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d");
  const data = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const [r, g, b] = colour(i);
    data.data.set([r, g, b, 255], 4 * i);
  }
  context.putImageData(data, 0, 0);
  return canvas;
}

function render({ model, el }) {
  const colors = () => model.get("options").colors;
  let serial = 0, waiting = null, started = 0, queued = null;
  let view = null, panels = [], gallery = null;

  // -- asking the kernel: one question at a time; while it is answered only the latest further wish is kept ------------
  function ask(content) {
    if (waiting !== null && performance.now() - started < 10000) { queued = content; return; }
    waiting = ++serial;
    started = performance.now();
    model.send({ ...content, id: serial });
  }
  function answered(id) {
    if (id !== waiting) return;
    waiting = null;
    if (queued) { const next = queued; queued = null; ask(next); }
  }
  const choose = (changes) => {
    const merged = queued && queued.do === "choose" ? { ...queued.changes, ...changes } : changes;
    ask({ do: "choose", changes: merged });
  };

  // -- the controls ----------------------------------------------------------------------------------------------------
  const field = (name) => make("select", { className: name, onchange: (e) => choose({ [name]: e.target.value }) });
  const [models, data, compare, kind, weights] = ["model", "data", "compare", "kind", "weights"].map(field);
  const head = make("select", { className: "head", onchange: (e) => choose({ head: Number(e.target.value) }) });
  const block = make("input", { className: "block", type: "range", min: 1, step: 1,
    oninput: (e) => { blockText.textContent = `${e.target.value} of ${e.target.max}`;
      choose({ block: Number(e.target.value) - 1 }); } });
  const blockText = make("span");
  const threshold = make("input", { type: "range", min: 0.05, max: 0.95, step: 0.05,
    oninput: (e) => choose({ threshold: Number(e.target.value) }) });
  const tokens = make("span");
  const partner = make("span", {},
    make("button", { textContent: "◀", title: "previous image of this class there", onclick: () => nextPartner(-1) }),
    make("button", { textContent: "▶", title: "next image of this class there", onclick: () => nextPartner(1) }));
  const nextPartner = (step) => choose({ compare_image: Math.max(0, view.choice.compare_image + step) });
  const opacity = make("input", { type: "range", min: 0, max: 100, value: 55, oninput: () => drawPanels() });
  const kindLabel = labelled("attention of", kind), thresholdLabel = labelled("score from", threshold);
  const error = make("div", { className: "error" });
  const foot = make("span", { className: "foot" }), saved = make("div", { className: "saved" });
  saved.setAttribute("aria-live", "polite");
  error.setAttribute("role", "alert");

  // -- the gallery -----------------------------------------------------------------------------------------------------
  const filter = (changes) => ask({ do: "gallery", changes });
  const only = make("select", { className: "label", onchange: (e) => filter({ label: Number(e.target.value), page: 0 }) });
  const wrong = make("input", { className: "wrong", type: "checkbox",
    onchange: (e) => filter({ wrong: e.target.checked, page: 0 }) });
  const wrongLabel = labelled("wrongly classified", wrong);
  const thumbs = make("canvas", { className: "thumbs", tabIndex: 0 });
  const before = make("button", { textContent: "◀", title: "earlier images", onclick: () => filter({ page: gallery.page - 1 }) });
  const after = make("button", { textContent: "▶", title: "later images", onclick: () => filter({ page: gallery.page + 1 }) });
  const pageText = make("span"), note = make("div", { className: "note" });

  function drawGallery() {
    const cell = gallery.side + 6, rows = Math.max(1, Math.ceil(gallery.indices.length / THUMBS_A_ROW));
    const context = sized(thumbs, THUMBS_A_ROW * cell, rows * cell);
    gallery.indices.forEach((index, i) => {
      const x = (i % THUMBS_A_ROW) * cell, y = Math.floor(i / THUMBS_A_ROW) * cell;
      const from = 3 * i * gallery.side ** 2;
      context.drawImage(raster(gallery.side, gallery.side,
        (p) => gallery.pixels.subarray(from + 3 * p, from + 3 * p + 3)), x + 3, y + 3);
      if (gallery.wrong[i]) {
        context.strokeStyle = "#d55e00";
        context.lineWidth = 1.5;
        context.strokeRect(x + 2.5, y + 2.5, cell - 5, cell - 5);
      }
      if (view && index === view.choice.image) {
        context.strokeStyle = CHOSEN;
        context.lineWidth = 3;
        context.strokeRect(x + 1.5, y + 1.5, cell - 3, cell - 3);
      }
    });
  }
  const thumbAt = (event) => {
    const cell = gallery.side + 6;
    const i = Math.floor(event.offsetY / cell) * THUMBS_A_ROW + Math.floor(event.offsetX / cell);
    return event.offsetX < THUMBS_A_ROW * cell && i < gallery.indices.length ? i : null;
  };
  thumbs.onclick = (event) => {
    const i = thumbAt(event);
    if (i !== null) choose({ image: gallery.indices[i] });
  };
  thumbs.onmousemove = (event) => {
    const i = thumbAt(event);
    thumbs.title = i === null ? "" : `${gallery.indices[i]}: ${gallery.labels[i]}${gallery.wrong[i] ? ", wrongly classified" : ""}`;
  };
  thumbs.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: THUMBS_A_ROW, ArrowUp: -THUMBS_A_ROW }[event.key];
    if (!step || !view) return;
    event.preventDefault();
    event.stopPropagation();
    const next = gallery.indices[gallery.indices.indexOf(view.choice.image) + step];
    if (next !== undefined) choose({ image: next });
  };
  function showGallery() {
    fill(only, [[-1, "all classes"], ...gallery.classes.map((name, k) => [k, name])], gallery.label);
    wrong.checked = gallery.only_wrong;
    wrongLabel.style.display = gallery.can_be_wrong ? "" : "none";
    pageText.textContent = `${gallery.page + 1} / ${gallery.pages}`;
    before.disabled = gallery.page === 0;
    after.disabled = gallery.page + 1 >= gallery.pages;
    note.textContent = `${gallery.found.toLocaleString("en")} images${gallery.note ? `, ${gallery.note}` : ""}`;
    el.dataset.gallery = `${gallery.indices.length}`;
    drawGallery();
  }

  // -- the panels ------------------------------------------------------------------------------------------------------
  function makePanel() {
    const panel = { picture: make("canvas", { className: "picture" }), map: make("canvas", { className: "map" }),
      probe: make("canvas"), overview: make("canvas", { className: "overview" }), title: make("h4"),
      read: make("figcaption"), mapText: make("figcaption"), probeText: make("figcaption"), hover: null };
    panel.probeBox = make("figure", {}, panel.probe, panel.probeText);
    panel.overviewText = make("figcaption");
    panel.overviewBox = make("figure", {}, panel.overview, panel.overviewText);
    panel.element = make("div", { className: "panel" }, panel.title, make("div", { className: "row" },
      make("figure", {}, panel.picture, panel.read), make("figure", {}, panel.map, panel.mapText), panel.probeBox,
      panel.overviewBox));
    panel.picture.onmousemove = (event) => hover(panel, rowAt(panel, event));
    panel.picture.onmouseleave = () => hover(panel, null);
    panel.picture.onclick = (event) => {
      const row = rowAt(panel, event);
      if (row !== null) choose({ token: String(row - panel.meta.prefix) });
    };
    panel.map.onmousemove = (event) => readMap(panel, event);
    panel.map.onmouseleave = () => tell(panel);
    panel.overview.onclick = (event) => pickTile(panel, event);
    return panel;
  }
  const scaleOf = (meta) => PICTURE / Math.max(meta.width, meta.height);

  // The row of weights under the pointer: a patch's, or that of the smallest detection it is in.
  function rowAt(panel, event) {
    const { meta } = panel, s = scaleOf(meta);
    const x = event.offsetX / (meta.width * s), y = event.offsetY / (meta.height * s);
    if (x < 0 || y < 0 || x >= 1 || y >= 1) return null;
    if (meta.boxes && meta.kind === "cross") {
      const inside = meta.boxes.map((b, i) => [b[2] * b[3], i]).filter(([, i]) => {
        const [cx, cy, w, h] = meta.boxes[i];
        return Math.abs(x - cx) <= w / 2 && Math.abs(y - cy) <= h / 2;
      }).sort((a, b) => a[0] - b[0]);
      return inside.length ? meta.queries[inside[0][1]] : null;
    }
    const [rows, columns] = meta.grid;
    const row = meta.prefix + Math.floor(y * rows) * columns + Math.floor(x * columns);
    return row;
  }
  function hover(panel, row) {
    if (panel.meta.rows === 1) row = null;  // weights of the chosen token alone are here
    if (row === panel.hover) return;
    // What is under the pointer in one panel is looked at in the other too, where both have it.
    for (const other of panels) {
      other.hover = row !== null && row - panel.meta.prefix + other.meta.prefix < other.meta.rows &&
        other.meta.kind === panel.meta.kind && other.meta.grid.join() === panel.meta.grid.join()
        ? row - panel.meta.prefix + other.meta.prefix : null;
      draw(other);
    }
  }
  const rowOf = (panel) => panel.hover ?? panel.meta.row;
  function values(panel, row) {
    const count = panel.meta.grid[0] * panel.meta.grid[1];
    return panel.weights.subarray(row * count, (row + 1) * count);
  }
  const nameOf = (panel, row) => {
    const { meta } = panel;
    if (meta.kind === "cross") {
      row = panel.hover ?? meta.query;
      const i = meta.queries.indexOf(row);
      return i < 0 ? `query ${row}` : `${meta.labels[i]} (query ${row})`;
    }
    const patch = row - meta.prefix;
    if (meta.rows === 1 && /^\d/.test(view.choice.token)) return `patch ${Number(view.choice.token) + 1}`;
    if (patch < 0 || meta.rows === 1) return `${view.choice.token || view.tokens[0] || "class"} token`;
    return `patch (${Math.floor(patch / meta.grid[1]) + 1}, ${(patch % meta.grid[1]) + 1})`;
  };

  function heat(context, panel, grid, width, height) {
    const [rows, columns] = panel.meta.grid, table = colors();
    context.drawImage(raster(columns, rows, (i) => table[Math.round(255 * grid(i))]), 0, 0, width, height);
  }
  function draw(panel) {
    const { meta } = panel, row = rowOf(panel), s = scaleOf(meta);
    const width = meta.width * s, height = meta.height * s;
    const share = values(panel, row), grid = (i) => share[i] / 65535;
    let context = sized(panel.picture, width, height);
    context.drawImage(panel.image, 0, 0, width, height);
    context.globalAlpha = opacity.value / 100;
    heat(context, panel, grid, width, height);
    context.globalAlpha = 1;
    outline(context, panel, row, width, height);
    context = sized(panel.map, width, height);
    heat(context, panel, grid, width, height);
    tell(panel);
  }
  function outline(context, panel, row, width, height) {
    const { meta } = panel, patch = row - meta.prefix;
    if (meta.boxes) {
      meta.boxes.forEach(([cx, cy, w, h], i) => {
        const chosen = meta.queries[i] === (panel.hover ?? meta.query);
        context.strokeStyle = chosen ? CHOSEN : "white";
        context.lineWidth = chosen ? 3 : 1.5;
        context.strokeRect((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height);
        context.font = "11px sans-serif";
        const text = meta.labels[i], wide = context.measureText(text).width + 6;
        const left = Math.min(Math.max(0, (cx - w / 2) * width), width - wide), top = Math.max(14, (cy - h / 2) * height);
        context.fillStyle = chosen ? "#0072b2" : "rgba(0, 0, 0, 0.6)";
        context.fillRect(left, top - 14, wide, 14);
        context.fillStyle = "white";
        context.fillText(text, left + 3, top - 3);
      });
    }
    if (meta.kind === "encoder" && patch >= 0 && meta.rows > 1) {
      const [rows, columns] = meta.grid;
      context.strokeStyle = CHOSEN;
      context.lineWidth = 2.5;
      context.strokeRect((patch % columns) * width / columns, Math.floor(patch / columns) * height / rows, width / columns,
        height / rows);
    }
  }
  function tell(panel) {
    const { meta } = panel, row = rowOf(panel), top = panel.tops[row], count = meta.grid[0] * meta.grid[1];
    const sum = values(panel, row).reduce((a, b) => a + b, 0) / 65535 * top;
    const what = view.choice.weights;
    panel.read.textContent = meta.rows === 1 ? `${nameOf(panel, row)}; click for another` : meta.kind === "cross"
      ? `${nameOf(panel, row)}: hover over a detection, click to keep it`
      : `${nameOf(panel, row)} looks: ${percent(sum)} of its attention on patches. Hover over a patch, click to keep it`;
    panel.mapText.textContent = what === "attention" ? `up to ${percent(top)} a patch; even would be ${percent(1 / count)}` :
      `${what === "rollout" ? "attention rollout" : "gradient-weighted attention"} through all blocks, up to ${top.toPrecision(3)}`;
    el.dataset.token = nameOf(panel, row);
  }
  function readMap(panel, event) {
    const { meta } = panel, s = scaleOf(meta), [rows, columns] = meta.grid, row = rowOf(panel);
    const r = Math.floor(event.offsetY / (meta.height * s) * rows), c = Math.floor(event.offsetX / (meta.width * s) * columns);
    if (r < 0 || c < 0 || r >= rows || c >= columns) return;
    const value = values(panel, row)[r * columns + c] / 65535 * panel.tops[row];
    panel.mapText.textContent = `patch (${r + 1}, ${c + 1}): ${view.choice.weights === "attention" ? percent(value)
      : value.toPrecision(3)}`;
  }
  function drawProbe(panel) {
    const { meta } = panel;
    panel.probeBox.style.display = meta.class_probe ? "" : "none";
    if (!meta.class_probe) return;
    const s = scaleOf(meta), top = panel.class_probe.reduce((a, b) => Math.max(a, b), 1e-12);
    heat(sized(panel.probe, meta.width * s, meta.height * s), panel, (i) => panel.class_probe[i] / top, meta.width * s,
      meta.height * s);
    panel.probeText.textContent = `class probe of this block; cosine with this image's probe ${meta.agreement.toFixed(3)}`;
  }
  // Tiles as large as fit beside the picture, none larger than 40 pixels.
  function tiles(panel) {
    const [blocks, heads] = panel.meta.overview;
    const side = Math.max(14, Math.min(40, Math.floor(320 / blocks), Math.floor(320 / heads)));
    return { blocks, heads, side };
  }
  function drawOverview(panel) {
    const { meta } = panel;
    panel.overviewBox.style.display = meta.overview ? "" : "none";
    if (!meta.overview) return;
    panel.overviewText.textContent = `every block (down) and head (across)${panel === panels[0] ? ": click one" : ""}`;
    const { blocks, heads, side } = tiles(panel), count = meta.grid[0] * meta.grid[1], table = colors();
    const context = sized(panel.overview, heads * side, blocks * side);
    for (let b = 0; b < blocks; b++) {
      for (let h = 0; h < heads; h++) {
        const tile = panel.overview_values.subarray((b * heads + h) * count, (b * heads + h + 1) * count);
        const top = tile.reduce((x, y) => Math.max(x, y), 1e-12);
        context.drawImage(raster(meta.grid[1], meta.grid[0], (i) => table[Math.round(255 * tile[i] / top)]),
          h * side + 1, b * side + 1, side - 2, side - 2);
      }
    }
    context.strokeStyle = CHOSEN;
    context.lineWidth = 2;
    context.strokeRect(Math.max(0, meta.head) * side + 1, meta.block * side + 1, (meta.head < 0 ? heads : 1) * side - 2, side - 2);
  }
  function pickTile(panel, event) {
    const { blocks, heads, side } = tiles(panel);
    const b = Math.floor(event.offsetY / side), h = Math.floor(event.offsetX / side);
    if (b < 0 || h < 0 || b >= blocks || h >= heads) return;
    // A second panel may have other blocks: only the first sets them. The chosen head once more gives the mean.
    if (panel !== panels[0]) return;
    choose({ block: b, head: b === panel.meta.block && h === panel.meta.head ? -1 : h });
  }
  function drawPanels() { panels.forEach(draw); }

  function unpack(panel, meta, [image, weightBytes, tops, overview, probe]) {
    const rgb = new Uint8Array(bytes(image));
    Object.assign(panel, { meta, hover: null, image: raster(meta.width, meta.height, (i) => rgb.subarray(3 * i, 3 * i + 3)),
      weights: new Uint16Array(bytes(weightBytes)), tops: new Float32Array(bytes(tops)),
      overview_values: new Float32Array(bytes(overview)), class_probe: new Float32Array(bytes(probe)) });
    panel.title.replaceChildren(meta.title, make("span", { textContent: `  ${meta.said}` }));
  }

  const stage = make("div", { className: "stage" });
  function showView(content, buffers) {
    const other = view && (view.choice.data !== content.choice.data);
    view = content;
    while (panels.length < content.panels.length) panels.push(makePanel());
    panels.length = content.panels.length;
    content.panels.forEach((meta, i) => unpack(panels[i], meta, buffers.slice(5 * i, 5 * i + 5)));
    stage.replaceChildren(...panels.map((panel) => panel.element));
    panels.forEach((panel) => { draw(panel); drawProbe(panel); drawOverview(panel); });
    if (gallery && !other) drawGallery();
    showControls();
    el.dataset.shown = String(Number(el.dataset.shown || 0) + 1);
  }
  function showControls() {
    const { choice } = view, options = model.get("options"), [first] = view.panels;
    fill(models, options.models.map((n) => [n, n]), choice.model);
    fill(data, options.data.map((n) => [n, n]), choice.data);
    fill(compare, [["", "nothing"], ...options.models.filter((n) => n !== choice.model).map((n) => [`model:${n}`, `model ${n}`]),
      ...options.data.filter((n) => n !== choice.data).map((n) => [`data:${n}`, `images ${n}`])], choice.compare);
    const names = { cross: "detections over the image", encoder: "image tokens" };
    fill(kind, first.kinds.map((k) => [k, names[k]]), choice.kind);
    kindLabel.style.display = first.kinds.length > 1 ? "" : "none";
    thresholdLabel.style.display = first.boxes ? "" : "none";
    threshold.value = choice.threshold;
    const ways = options.weights.filter((w) => w === "attention" || !first.boxes || (w === "gradient" && choice.kind === "cross"));
    fill(weights, ways.map((w) => [w, { attention: "attention", rollout: "attention rollout",
      gradient: "gradient-weighted" }[w]]), choice.weights);
    fill(head, [[-1, "mean"], ...Array.from({ length: view.heads }, (_, i) => [i, String(i + 1)])], choice.head);
    Object.assign(block, { max: first.blocks, value: first.block + 1 });
    block.disabled = head.disabled = choice.weights !== "attention";
    blockText.textContent = `${first.block + 1} of ${first.blocks}`;
    partner.style.display = choice.compare.startsWith("data:") ? "" : "none";
    tokens.replaceChildren(...view.tokens.map((name) => {
      const button = make("button", { textContent: `${name} token`, onclick: () => choose({ token: name }) });
      button.setAttribute("aria-pressed", (choice.token || view.tokens[0]) === name);
      return button;
    }));
  }

  // -- answers from the kernel -----------------------------------------------------------------------------------------
  function receive(content, buffers) {
    if (content.kind === "view") {
      showView(content, buffers);
      error.textContent = "";
      if (content.id && content.id === waiting) {
        const spent = performance.now() - started;
        foot.textContent = `answered in ${Math.round(spent)} ms`;
        model.set("latency", spent);
        model.save_changes();
      }
    } else if (content.kind === "gallery") {
      gallery = { ...content, pixels: new Uint8Array(buffers.length ? bytes(buffers[0]) : 0) };
      showGallery();
    } else if (content.kind === "error") {
      error.textContent = content.text;
      if (view) showControls();
    } else if (content.kind === "done") {
      answered(content.id);
    }
  }
  const showSaved = () => { saved.textContent = model.get("saved"); };
  model.on("msg:custom", receive);
  model.on("change:saved", showSaved);

  const save = (what) => make("button", { className: `save-${what}`, textContent: `Save ${what}`,
    onclick: () => ask({ do: "save", what }) });
  el.classList.add("dfkd");
  el.append(
    make("div", { className: "bar" }, labelled("model", models), labelled("images", data), labelled("beside", compare, partner),
      kindLabel, labelled("weights", weights), labelled("block", block, blockText), labelled("head", head), tokens,
      thresholdLabel, labelled("overlay", opacity)),
    error,
    make("div", { className: "body" },
      make("div", { className: "gallery" }, make("div", { className: "bar" }, labelled("", only), wrongLabel), thumbs,
        make("div", { className: "bar" }, before, pageText, after), note),
      stage),
    make("div", { className: "bar" }, save("figure"), ...(model.get("options").parameters ? [save("parameters")] : []), foot),
    saved);
  ask({ do: "ready" });
  return () => { model.off("msg:custom", receive); model.off("change:saved", showSaved); };
}

export default { render };
