// The front end of AttentionExplorer. The kernel sends arrays, this draws them; hovering needs no kernel at all, since the
// attention of every token at the chosen block and head is already here.

const PICTURE = 205;  // side of the image and of the weights, in CSS pixels
const ACROSS = 5;     // thumbnails in a row of the gallery
const CHOSEN = "#56b4e9";
const KINDS = { cross: "detections over the image", encoder: "image tokens" };
const WAYS = { attention: "attention", rollout: "attention rollout", gradient: "gradient-weighted" };
const share = (value) => `${(100 * value).toPrecision(3)} %`;
const own = (list) => list.map((name) => [name, name]);

function render({ model, el }) {
  const options = model.get("options"), { ask, answered } = asker(model), { error, saved, show } = reports(model);
  let view = null, panels = [], gallery = null;

  // -- the controls ----------------------------------------------------------------------------------------------------
  const choose = (changes) => ask({ do: "choose", changes });
  const [models, data, compare, kind, weights] = ["model", "data", "compare", "kind", "weights"]
    .map((name) => select(name, (value) => choose({ [name]: value })));
  const head = select("head", (value) => choose({ head: Number(value) }));
  const blockText = make("span"), tokens = make("span");
  const tellBlock = (value, of) => { blockText.textContent = `${value} of ${of}`; };
  const block = slider("block", "block", { min: 1, step: 1 }, (value) => { tellBlock(value, block.max); choose({ block: value - 1 }); });
  const threshold = slider("threshold", "score from", { min: 0.05, max: 0.95, step: 0.05 }, (value) => choose({ threshold: value }));
  const opacity = slider("opacity", "overlay", { min: 0, max: 100, value: 55 }, () => panels.forEach(draw));
  const nextPartner = (by) => choose({ compare_image: Math.max(0, view.choice.compare_image + by) });
  const partner = make("span", {}, button("", "◀", () => nextPartner(-1), "previous image of this class there"),
    button("", "▶", () => nextPartner(1), "next image of this class there"));
  const kindLabel = labelled("attention of", kind), thresholdLabel = labelled("score from", threshold);
  const foot = make("span", { className: "quiet" });

  function showControls() {
    const { choice } = view, [first] = view.panels;
    fill(models, own(options.models), choice.model);
    fill(data, own(options.data), choice.data);
    const others = (list, chosen, what, word) => list.filter((n) => n !== chosen).map((n) => [`${what}:${n}`, `${word} ${n}`]);
    fill(compare, [["", "nothing"], ...others(options.models, choice.model, "model", "model"),
      ...others(options.data, choice.data, "data", "images")], choice.compare);
    fill(kind, first.kinds.map((k) => [k, KINDS[k]]), choice.kind);
    const ways = options.weights.filter((w) => w === "attention" || !first.boxes || (w === "gradient" && choice.kind === "cross"));
    fill(weights, ways.map((w) => [w, WAYS[w]]), choice.weights);
    fill(head, [[-1, "mean"], ...Array.from({ length: view.heads }, (_, i) => [i, String(i + 1)])], choice.head);
    Object.assign(block, { max: first.blocks, value: first.block + 1 });
    tellBlock(first.block + 1, first.blocks);
    block.disabled = head.disabled = choice.weights !== "attention";
    threshold.value = choice.threshold;
    kindLabel.hidden = first.kinds.length < 2;
    thresholdLabel.hidden = !first.boxes;
    partner.hidden = !choice.compare.startsWith("data:");
    tokens.replaceChildren(...view.tokens.map((name) => {
      const chosen = button("", `${name} token`, () => choose({ token: name }));
      chosen.setAttribute("aria-pressed", (choice.token || view.tokens[0]) === name);
      return chosen;
    }));
  }

  // -- the gallery -----------------------------------------------------------------------------------------------------
  const filter = (changes) => ask({ do: "gallery", changes });
  const only = select("label", (value) => filter({ label: Number(value), page: 0 }));
  const wrong = make("input", { className: "wrong", type: "checkbox", onchange: () => filter({ wrong: wrong.checked, page: 0 }) });
  const wrongLabel = labelled("wrongly classified", wrong);
  const steps = () => ({ ArrowRight: 1, ArrowLeft: -1, ArrowDown: ACROSS, ArrowUp: -ACROSS });
  const strip = thumbnails("grid", "images", options.thumb, steps, (image) => choose({ image }), (by) => {
    const image = gallery.indices[gallery.indices.indexOf(view.choice.image) + by];
    if (image !== undefined) choose({ image });
  });
  const before = button("", "◀", () => filter({ page: gallery.page - 1 }), "earlier images");
  const after = button("", "▶", () => filter({ page: gallery.page + 1 }), "later images");
  const pageText = make("span"), note = make("div", { className: "note quiet" });
  const drawGallery = () => strip.draw(gallery.indices.map((id, i) => ({ id, picture: gallery.pictures[i], bad: gallery.wrong[i],
    title: `${id}: ${gallery.labels[i]}${gallery.wrong[i] ? ", wrongly classified" : ""}` })), view?.choice.image);
  function showGallery(content, buffers) {
    const size = 3 * options.thumb ** 2, rgb = buffers.length ? array(buffers[0], Uint8Array) : [];
    gallery = { ...content, pictures: content.indices.map((_, i) => raster(options.thumb, options.thumb, rgb.subarray(i * size, (i + 1) * size))) };
    fill(only, [[-1, "all classes"], ...gallery.classes.map((name, k) => [k, name])], gallery.label);
    wrong.checked = gallery.only_wrong;
    wrongLabel.hidden = !gallery.can_be_wrong;
    pageText.textContent = `${gallery.page + 1} / ${gallery.pages}`;
    before.disabled = gallery.page === 0;
    after.disabled = gallery.page + 1 >= gallery.pages;
    note.textContent = `${grouped(gallery.found)} images${gallery.note ? `, ${gallery.note}` : ""}`;
    el.dataset.gallery = gallery.indices.length;
    drawGallery();
  }

  // -- the panels ------------------------------------------------------------------------------------------------------
  function makePanel() {
    const panel = { title: make("h4"), hover: null };
    const figure = (name) => {
      panel[name] = make("canvas", { className: name });
      panel[`${name}Text`] = make("figcaption");
      return panel[`${name}Box`] = make("figure", {}, panel[name], panel[`${name}Text`]);
    };
    panel.element = div("panel", panel.title, div("row", ...["picture", "map", "probe", "overview"].map(figure)));
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
  const count = ({ grid: [rows, columns] }) => rows * columns;
  // The point under the mouse as shares of a picture, and the patch that it is in: [x, y, row, column], or null.
  function pointed({ meta: { grid: [rows, columns] } }, event) {
    const x = event.offsetX / event.target.clientWidth, y = event.offsetY / event.target.clientHeight;
    return x < 0 || y < 0 || x >= 1 || y >= 1 ? null : [x, y, Math.floor(y * rows), Math.floor(x * columns)];
  }
  // The row of weights under the pointer: a patch's, or that of the smallest detection it is in.
  function rowAt(panel, event) {
    const at = pointed(panel, event), { meta } = panel;
    if (!at) return null;
    if (meta.kind !== "cross") return meta.prefix + at[2] * meta.grid[1] + at[3];
    const hit = smallest(meta.boxes, at[0], at[1]);
    return hit === null ? null : meta.queries[hit];
  }
  function hover(panel, row) {
    const { meta } = panel;
    if (meta.rows === 1) row = null;  // weights of the chosen token alone are here
    if (row === panel.hover) return;
    // What is under the pointer in one panel is shown in the other too, where both have it.
    for (const other of panels) {
      const there = row === null ? null : row - meta.prefix + other.meta.prefix;
      const alike = other.meta.kind === meta.kind && other.meta.grid.join() === meta.grid.join();
      other.hover = alike && there < other.meta.rows ? there : null;
      draw(other);
    }
  }
  const rowOf = (panel) => panel.hover ?? panel.meta.row;
  const values = ({ meta, weights: all }, row) => all.subarray(row * count(meta), (row + 1) * count(meta));
  function nameOf(panel, row) {
    const { meta } = panel, { token } = view.choice, patch = row - meta.prefix;
    if (meta.kind === "cross") {
      const query = panel.hover ?? meta.query, i = meta.queries.indexOf(query);
      return i < 0 ? `query ${query}` : `${meta.labels[i]} (query ${query})`;
    }
    if (meta.rows === 1 && /^\d/.test(token)) return `patch ${Number(token) + 1}`;
    if (patch < 0 || meta.rows === 1) return `${token || view.tokens[0] || "class"} token`;
    return `patch (${Math.floor(patch / meta.grid[1]) + 1}, ${(patch % meta.grid[1]) + 1})`;
  }
  function draw(panel) {
    const { meta, width, height } = panel, row = rowOf(panel), weighed = values(panel, row), whole = [0, 0, width, height];
    const context = sized(panel.picture, width, height);
    context.drawImage(panel.image, ...whole);
    context.globalAlpha = opacity.value / 100;
    heat(context, options.heat, weighed, meta.grid, 65535, whole);
    context.globalAlpha = 1;
    const [rows, columns] = meta.grid, patch = row - meta.prefix, taken = [];
    meta.boxes?.forEach((box, i) => {
      const chosen = meta.queries[i] === (panel.hover ?? meta.query);
      outline(context, box, width, height, chosen ? CHOSEN : "#555555", chosen ? 3 : 1.5);
      tag(context, box, meta.labels[i], width, height, chosen ? "#0072b2" : "#555555", taken);
    });
    if (meta.kind === "encoder" && patch >= 0 && meta.rows > 1) {
      outline(context, [(patch % columns + 0.5) / columns, (Math.floor(patch / columns) + 0.5) / rows, 1 / columns, 1 / rows],
        width, height, CHOSEN, 2.5);
    }
    heat(sized(panel.map, width, height), options.heat, weighed, meta.grid, 65535, whole);
    tell(panel);
  }
  function tell(panel) {
    const { meta } = panel, row = rowOf(panel), top = panel.tops[row], name = nameOf(panel, row), way = view.choice.weights;
    const sum = values(panel, row).reduce((a, b) => a + b, 0) / 65535 * top;
    panel.pictureText.textContent = meta.rows === 1 ? `${name}; click for another` : meta.kind === "cross"
      ? `${name}: hover over a detection, click to choose it`
      : `${name}: ${share(sum)} of its attention is on patches. Hover over a patch, click to choose it`;
    panel.mapText.textContent = way === "attention" ? `up to ${share(top)} a patch; even would be ${share(1 / count(meta))}`
      : `${way === "rollout" ? "attention rollout" : "gradient-weighted attention"} through all blocks, up to ${top.toPrecision(3)}`;
    el.dataset.token = name;
  }
  function readMap(panel, event) {
    const at = pointed(panel, event), row = rowOf(panel);
    if (!at) return;
    const value = values(panel, row)[at[2] * panel.meta.grid[1] + at[3]] / 65535 * panel.tops[row];
    panel.mapText.textContent = `patch (${at[2] + 1}, ${at[3] + 1}): ${view.choice.weights === "attention" ? share(value) : value.toPrecision(3)}`;
  }
  function drawProbe({ meta, probe, probeBox, probeText, width, height, class_probe: values }) {
    probeBox.hidden = !meta.class_probe;
    if (!meta.class_probe) return;
    heat(sized(probe, width, height), options.heat, values, meta.grid, largest(values), [0, 0, width, height]);
    probeText.textContent = `class probe of this block; cosine with this image's probe ${meta.agreement.toFixed(3)}`;
  }
  // [blocks, heads, side of a tile]: as large as fits beside the picture, none larger than 40 pixels.
  const tiles = ({ meta: { overview: [blocks, heads] } }) => [blocks, heads, Math.max(14, Math.min(40, Math.floor(320 / Math.max(blocks, heads))))];
  function drawOverview(panel) {
    const { meta } = panel;
    panel.overviewBox.hidden = !meta.overview;
    if (!meta.overview) return;
    panel.overviewText.textContent = `every block (down) and head (across)${panel === panels[0] ? ": click one" : ""}`;
    const [blocks, heads, side] = tiles(panel), size = count(meta), context = sized(panel.overview, heads * side, blocks * side);
    for (let i = 0; i < blocks * heads; i++) {
      const tile = panel.everywhere.subarray(i * size, (i + 1) * size);
      heat(context, options.heat, tile, meta.grid, largest(tile), [i % heads * side + 1, Math.floor(i / heads) * side + 1, side - 2, side - 2]);
    }
    Object.assign(context, { strokeStyle: CHOSEN, lineWidth: 2 });
    context.strokeRect(Math.max(0, meta.head) * side + 1, meta.block * side + 1, (meta.head < 0 ? heads : 1) * side - 2, side - 2);
  }
  function pickTile(panel, event) {
    const [blocks, heads, side] = tiles(panel), b = Math.floor(event.offsetY / side), h = Math.floor(event.offsetX / side);
    // A second panel may have other blocks: only the first sets them. The chosen head once more gives the mean.
    if (panel !== panels[0] || b < 0 || h < 0 || b >= blocks || h >= heads) return;
    choose({ block: b, head: b === panel.meta.block && h === panel.meta.head ? -1 : h });
  }

  // -- answers from the kernel -----------------------------------------------------------------------------------------
  const stage = div("stage");
  function showView(content, buffers) {
    const same = view && view.choice.data === content.choice.data;
    view = content;
    panels = content.panels.map((meta, i) => {
      const [image, weighed, tops, overview, probe] = buffers.slice(5 * i, 5 * i + 5), panel = panels[i] ?? makePanel();
      const scale = PICTURE / Math.max(meta.width, meta.height);
      panel.title.replaceChildren(meta.title, make("span", { className: "quiet", textContent: `  ${meta.prediction}` }));
      return Object.assign(panel, { meta, hover: null, width: meta.width * scale, height: meta.height * scale,
        image: raster(meta.width, meta.height, array(image, Uint8Array)), weights: array(weighed, Uint16Array), tops: array(tops, Float32Array),
        everywhere: array(overview, Float32Array), class_probe: array(probe, Float32Array) });
    });
    stage.replaceChildren(...panels.map((panel) => panel.element));
    panels.forEach((panel) => { draw(panel); drawProbe(panel); drawOverview(panel); });
    if (gallery && same) drawGallery();
    showControls();
    el.dataset.shown = Number(el.dataset.shown || 0) + 1;
  }
  function receive(content, buffers) {
    if (content.kind === "view") showView(content, buffers);
    if (content.kind === "gallery") showGallery(content, buffers);
    if (content.kind !== "done") return;
    const spent = answered(content.id);
    if (spent === null || content.asked !== "choose") return;
    foot.textContent = `answered in ${Math.round(spent)} ms`;
    model.set("latency", spent);
    model.save_changes();
  }
  // What could not be shown is not what the controls say.
  const failed = () => { show(); if (view) showControls(); };
  const save = (what) => button(`save-${what}`, `Save ${what}`, () => ask({ do: "save", what }));
  const away = mount(model, el, "explorer", "attention, image by image", [
    div("bar", labelled("model", models), labelled("images", data), labelled("beside", compare, partner), kindLabel,
      labelled("weights", weights), labelled("block", block, blockText), labelled("head", head), tokens, thresholdLabel,
      labelled("overlay", opacity)),
    error,
    div("body", div("gallery", div("bar", only, wrongLabel), strip.element, div("bar", before, pageText, after), note), stage),
    div("bar", save("figure"), ...(options.parameters ? [save("parameters")] : []), foot), saved,
  ], { "msg:custom": receive, "change:saved": show, "change:error": failed });
  show();
  ask({ do: "ready" });
  return away;
}

export default { render };
