// The front end of AttentionExplorer. The kernel sends arrays, this draws them; hovering needs no kernel at all, since the
// attention of every token at the chosen block and head is already here.

const PICTURE = 205;  // largest side of the image and of the weights, in CSS pixels
const SCALE = 50;     // width of the colour bar with its numbers
const ACROSS = 5;     // thumbnails in a row of the gallery
const CHOSEN = "#56b4e9";
const KINDS = { cross: "detections over the image", encoder: "image tokens" };
const WAYS = { attention: "attention", rollout: "attention rollout", gradient: "gradient-weighted", legrad: "LeGrad", similarity: "similar patches", components: "patch components", learning: "while it learned" };
const share = (value) => `${(100 * value).toPrecision(3)} %`;
const MOST = 8;       // megabytes of an own image: Jupyter's connection breaks at 10
const own = (list) => list.map((name) => [name, name]);
const ARROWS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
const between = (low, value, high) => Math.max(low, Math.min(value, high));

function render({ model, el }) {
  const options = model.get("options"), { ask, answered } = asker(model), { error, saved, show, problem } = reports(model);
  let view = null, panels = [], gallery = null;

  // -- the controls ----------------------------------------------------------------------------------------------------
  const choose = (changes) => ask({ do: "choose", changes });
  const [models, data, compare, kind, weights, colours, scale] = ["model", "data", "compare", "kind", "weights", "colours", "scale"]
    .map((name) => select(name, (value) => choose({ [name]: value })));
  const head = select("head", (value) => choose({ head: Number(value) }));
  const [blockText, epochText, thresholdText, opacityText, tokens] = Array.from({ length: 5 }, () => make("span"));
  const tellBlock = (value, of) => { blockText.textContent = `${value} of ${of}`; };
  const block = slider("block", "block", { min: 1, step: 1 }, (value) => { tellBlock(value, block.max); choose({ block: value - 1 }); });
  const tellEpoch = (value, of) => { epochText.textContent = value ? `${value} of ${of}` : "before training"; };
  const epoch = slider("epoch", "epoch", { min: 0, step: 1 }, (value) => { tellEpoch(value, epoch.max); choose({ epoch: value }); });
  const threshold = slider("threshold", "score from", { min: 0.05, max: 0.95, step: 0.05 }, (value) => {
    thresholdText.textContent = value.toFixed(2);
    choose({ threshold: value });
  });
  const tellOpacity = () => { opacityText.textContent = `${opacity.value} %`; };
  const opacity = slider("opacity", "overlay", { min: 0, max: 100 }, () => { tellOpacity(); panels.forEach(draw); });
  opacity.onchange = () => choose({ overlay: opacity.value / 100 });
  const nextPartner = (by) => choose({ compare_image: Math.max(0, view.choice.compare_image + by) });
  const earlier = button("", "◀", () => nextPartner(-1), "previous image of this class there");
  const partner = make("span", {}, earlier, button("", "▶", () => nextPartner(1), "next image of this class there"));
  // How large pictures are drawn, here alone.
  let zoom = 1;
  const zooms = select("zoom", (value) => { zoom = Number(value); if (view) redraw(); });
  fill(zooms, [1, 2, 3].map((times) => [times, `${times} ×`]), zoom);
  const kindLabel = labelled("attention of", kind), thresholdLabel = labelled("score from", threshold, thresholdText), epochLabel = labelled("epoch", epoch, epochText);
  // The chosen head, or all of the chosen block, switched off in a second panel; once more, and it is on again.
  const off = button("off", "", () => choose({ without: view.choice.without ? "" : `${view.choice.block}${view.choice.head < 0 ? "" : `.${view.choice.head}`}` }),
    "the same model without the attention of this head or block, beside");
  const tellOff = ({ without, block, head }) => {
    const [b, h] = without ? without.split(".").map(Number) : [block, head < 0 ? undefined : head];
    off.textContent = `switch ${without ? "on" : "off"} block ${b + 1}${h === undefined ? "" : `, head ${h + 1}`}`;
    off.setAttribute("aria-pressed", without !== "");
  };
  const measure = button("measure", "does it rest there?", () => ask({ do: "measure" }),
    "insertion and deletion: the predicted class's probability while patches are put in, and taken away, in the order of these weights");
  const foot = make("span", { className: "quiet" });
  // An image of one's own: picked, dropped anywhere on the explorer, or pasted.
  const picker = make("input", { type: "file", accept: "image/*", className: "own", hidden: true, onchange: () => { take(picker.files); picker.value = ""; } });
  const pick = button("pick", "own image …", () => picker.click(), "or drop or paste one here");
  async function take(files) {
    const [file] = [...files].filter((one) => one.type.startsWith("image/"));
    if (!file) return problem("what was dropped or pasted is no image file\n  fix: give a file of an image");
    if (file.size > MOST * 1e6) {
      return problem(`the image is too large\n  expected: at most ${MOST} MB\n  got: ${(file.size / 1e6).toFixed(1)} MB\n  fix: make it smaller, or choose it by its path: explorer.choose(data="/path/to/image.jpg")`);
    }
    problem("");
    model.send({ do: "own", name: file.name }, undefined, [await file.arrayBuffer()]);
  }
  const given = (event) => event.dataTransfer ?? event.clipboardData;
  for (const name of ["drop", "paste"]) {
    el.addEventListener(name, (event) => { if (given(event)?.files.length) { event.preventDefault(); event.stopPropagation(); take(given(event).files); } });
  }
  el.addEventListener("dragover", (event) => { if ([...given(event).types].includes("Files")) { event.preventDefault(); event.stopPropagation(); } });

  function showControls() {
    const { choice, possible } = view, [first] = view.panels;
    fill(models, own(options.models), choice.model, possible.model);
    const taken = options.data.includes(choice.data) ? [] : [[choice.data, choice.data.split(/[\\/]/).pop()]];
    fill(data, [...own(options.data), ...taken], choice.data, possible.data);
    const others = (list, chosen, what, word) => list.filter((n) => n !== chosen).map((n) => [`${what}:${n}`, `${word} ${n}`]);
    fill(compare, [["", "nothing"], ...(options.models.length > 2 ? [["models", "all other models"]] : []),
      ...others(options.models, choice.model, "model", "model"),
      ...others(options.data, choice.data, "data", "images")], choice.compare, possible.compare);
    fill(kind, first.kinds.map((k) => [k, KINDS[k]]), choice.kind);
    const ways = possible.weights.filter((w) => w === "attention" || !first.boxes || choice.kind === "cross");
    fill(weights, options.weights.map((w) => [w, WAYS[w]]), choice.weights, ways);
    fill(colours, own(Object.keys(options.maps)), choice.colours);
    fill(scale, [["own", "each its own"], ["one", "one for all"]], choice.scale);
    scale.disabled = panels.length < 2;
    fill(head, [[-1, "mean"], ...Array.from({ length: view.heads }, (_, i) => [i, String(i + 1)])], choice.head);
    Object.assign(block, { max: first.blocks, value: first.block + 1 });
    tellBlock(first.block + 1, first.blocks);
    block.disabled = !["attention", "similarity", "components"].includes(choice.weights) || first.blocks < 2;
    head.disabled = choice.weights !== "attention" || view.heads < 2;
    epochLabel.hidden = first.epochs === null;
    Object.assign(epoch, { max: first.epochs ?? 0, value: first.epoch ?? 0 });
    tellEpoch(first.epoch, first.epochs);
    tellOff(choice);
    measure.disabled = !view.measurable;
    threshold.value = choice.threshold;
    thresholdText.textContent = choice.threshold.toFixed(2);
    opacity.value = Math.round(100 * choice.overlay);
    tellOpacity();
    earlier.disabled = choice.compare_image === 0;
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
    note.textContent = `${grouped(gallery.found)} image${gallery.found === 1 ? "" : "s"}${gallery.note ? `, ${gallery.note}` : ""}`;
    el.dataset.gallery = gallery.indices.length;
    drawGallery();
  }

  // -- the panels ------------------------------------------------------------------------------------------------------
  function makePanel() {
    const panel = { title: make("h4"), hover: null, reading: null };
    const figure = (name) => {
      panel[name] = make("canvas", { className: name });
      panel[`${name}Text`] = make("figcaption");
      return panel[`${name}Box`] = make("figure", {}, panel[name], panel[`${name}Text`]);
    };
    panel.element = div("panel", panel.title, div("row", ...["picture", "map", "scale", "probe", "overview"].map(figure)));
    panel.picture.onmousemove = (event) => hover(panel, rowAt(panel, event));
    panel.picture.onmouseleave = panel.picture.onblur = () => hover(panel, null);
    panel.picture.onclick = (event) => pickRow(panel, rowAt(panel, event));
    keys(panel.picture, "image: arrows go to a patch or a detection, Enter chooses it", (step) => {
      const { meta } = panel, from = panel.hover ?? meta.row, far = meta.queries.length - 1;
      if (meta.kind !== "cross") hover(panel, meta.prefix + stepped(panel, from - meta.prefix, step));
      else if (far >= 0) hover(panel, meta.queries[between(0, meta.queries.indexOf(panel.hover ?? meta.query) + step[0] + step[1], far)]);
    }, () => pickRow(panel, panel.hover));
    panel.map.onmousemove = (event) => read(panel, pointed(panel, event));
    panel.map.onmouseleave = panel.map.onblur = () => read(panel, null);
    keys(panel.map, "weights: arrows read the patches", (step) => {
      read(panel, place(panel, stepped(panel, panel.reading === null ? -1 : patchAt(panel, panel.reading), step)));
    }, () => {});
    panel.overview.onclick = (event) => pickTile(panel, event);
    keys(panel.overview, "blocks and heads: arrows choose one, Enter the mean of the heads", ([down, across]) => {
      const { meta } = panel, [blocks, heads] = meta.overview;
      if (panel === panels[0]) choose({ block: between(0, meta.block + down, blocks - 1), head: between(0, Math.max(0, meta.head) + across, heads - 1) });
    }, () => { if (panel === panels[0]) choose({ head: panel.meta.head < 0 ? 0 : -1 }); });
    return panel;
  }
  // Makes a canvas answer the arrows with `go` and Enter with `enter`.
  function keys(canvas, label, go, enter) {
    Object.assign(canvas, { tabIndex: 0, ariaLabel: label, onkeydown: (event) => {
      if (event.key !== "Enter" && !ARROWS[event.key]) return;
      event.preventDefault();
      if (event.key === "Enter") enter(); else go(ARROWS[event.key]);
    } });
    canvas.setAttribute("role", "application");
  }
  const count = ({ grid: [rows, columns] }) => rows * columns;
  // Places in an image, [x, y] as shares of it, are what panels have in common, whatever their grids.
  function place({ meta: { grid: [rows, columns], cover } }, patch) {
    return [(patch % columns + 0.5) / columns * cover[1], (Math.floor(patch / columns) + 0.5) / rows * cover[0]];
  }
  // The patch there, or null where no patch is.
  function patchAt({ meta: { grid: [rows, columns], cover } }, [x, y]) {
    const row = Math.floor(y / cover[0] * rows), column = Math.floor(x / cover[1] * columns);
    return row < 0 || column < 0 || row >= rows || column >= columns ? null : row * columns + column;
  }
  // One step from a patch, from the middle if it is none.
  function stepped({ meta: { grid: [rows, columns] } }, patch, [down, across]) {
    if (patch === null || patch < 0) return Math.floor(rows / 2) * columns + Math.floor(columns / 2);
    return between(0, Math.floor(patch / columns) + down, rows - 1) * columns + between(0, patch % columns + across, columns - 1);
  }
  const pointed = (panel, event) => [event.offsetX / event.target.clientWidth, event.offsetY / event.target.clientHeight];
  // The row of weights under the pointer: a patch's, or that of the smallest detection it is in.
  function rowAt(panel, event) {
    const at = pointed(panel, event), { meta } = panel;
    if (meta.kind !== "cross") {
      const patch = patchAt(panel, at);
      return patch === null ? null : meta.prefix + patch;
    }
    const hit = smallest(meta.boxes, ...at);
    return hit === null ? null : meta.queries[hit];
  }
  // The row in another panel that is at the same place as one here. Queries are each detector's own.
  function same(panel, row, other) {
    if (row === null || panel === other) return row;
    if (panel.meta.kind !== "encoder" || other.meta.kind !== "encoder") return null;
    const patch = patchAt(other, place(panel, row - panel.meta.prefix));
    return patch === null ? null : other.meta.prefix + patch;
  }
  function pickRow(panel, row) {
    const [first] = panels, chosen = same(panel, row, first);
    if (chosen !== null) choose({ token: String(chosen - first.meta.prefix) });
  }
  function hover(panel, row) {
    if (row === panel.hover) return;
    panels.forEach((other) => { other.hover = same(panel, row, other); });
    panels.forEach(draw);
  }
  // Of rollout and gradients the weights of the chosen token alone are here.
  const rowOf = ({ meta, hover }) => meta.rows === 1 ? meta.row : hover ?? meta.row;
  const values = ({ meta, weights: all }, row) => all.subarray(row * count(meta), (row + 1) * count(meta));
  // The weight of the brightest colour. On one scale, panels of fewer patches have more on each.
  function topOf(panel) {
    const tops = panels.map((other) => other.tops[rowOf(other)] * count(other.meta));
    return view.choice.scale === "one" ? Math.max(...tops, 1e-12) / count(panel.meta) : panel.tops[rowOf(panel)];
  }
  const told = (value) => ["attention", "learning"].includes(view.choice.weights) ? share(value) : value.toPrecision(3);
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
  // Of a second image the first one's patch marks what is most like it, not the same place.
  const marked = (panel, weighed) => panel.meta.nearest ? weighed.indexOf(largest(weighed)) : (panel.hover ?? panel.meta.row) - panel.meta.prefix;
  const colors = () => options.maps[view.choice.colours];
  function draw(panel) {
    const { meta, width, height } = panel, row = rowOf(panel), weighed = values(panel, row);
    const top = topOf(panel), shares = 65535 * top / Math.max(panel.tops[row], 1e-12);
    const covered = [0, 0, width * meta.cover[1], height * meta.cover[0]], context = sized(panel.picture, width, height);
    context.drawImage(panel.image, 0, 0, width, height);
    context.globalAlpha = opacity.value / 100;
    const laid = (where) => meta.tints ? where.drawImage(raster(meta.grid[1], meta.grid[0], meta.tints.flat()), ...covered)
      : heat(where, colors(), weighed, meta.grid, shares, covered);
    laid(context);
    context.globalAlpha = 1;
    const [rows, columns] = meta.grid, patch = marked(panel, weighed), taken = [];
    meta.boxes?.forEach((box, i) => {
      const chosen = meta.queries[i] === (panel.hover ?? meta.query);
      outline(context, box, width, height, chosen ? CHOSEN : "#555555", chosen ? 3 : 1.5);
      tag(context, box, meta.labels[i], width, height, chosen ? "#0072b2" : "#555555", taken);
    });
    if (meta.kind === "encoder" && patch >= 0 && (meta.rows > 1 || panel.hover !== null)) {
      outline(context, [...place(panel, patch), meta.cover[1] / columns, meta.cover[0] / rows], width, height, CHOSEN, 2.5);
    }
    laid(sized(panel.map, width, height));
    panel.scaleBox.hidden = meta.tints !== null;
    drawScale(panel, top);
    tell(panel);
  }
  // The colour bar: what the brightest colour is, its half, and 0.
  function drawScale({ scale: canvas, height }, top) {
    const context = sized(canvas, SCALE, height), table = colors();
    for (let y = 0; y < height; y++) {
      context.fillStyle = `rgb(${table[Math.round(255 * (1 - y / (height - 1)))]})`;
      context.fillRect(0, y, 10, 1.5);
    }
    Object.assign(context, { fillStyle: getComputedStyle(stage).color, font: "10px sans-serif" });
    [[top, 9], [top / 2, height / 2 + 3], [0, height - 1]].forEach(([value, y]) => context.fillText(value ? told(value) : "0", 13, y));
  }
  function tell(panel) {
    const { meta } = panel, row = rowOf(panel), name = nameOf(panel, row), way = view.choice.weights;
    const sum = values(panel, row).reduce((a, b) => a + b, 0) / 65535 * panel.tops[row];
    const at = marked(panel, values(panel, row)), columns = meta.grid[1];
    panel.pictureText.textContent = meta.tints ? "patches of like features have like colours" : way === "legrad" ? "where more attention would raise the predicted class" : way === "learning" ? `${name}: drag "epoch"` : meta.nearest ? `nearest: patch (${Math.floor(at / columns) + 1}, ${at % columns + 1})`
      : way === "similarity" ? `${name}: hover over a patch, click to choose it` : meta.rows === 1 ? `${name}; click for another` : meta.kind === "cross"
      ? `${name}: hover over a detection, click to choose it`
      : `${name}: ${share(sum)} of its attention is on patches. Hover over a patch, click to choose it`;
    panel.mapText.textContent = meta.tints ? `red, green, blue: the first components of the patches' features, ${meta.shares.map((one) => percent(one, 0)).join(", ")} of the variance`
      : way === "similarity" ? `cosine of the patch's features${meta.nearest ? " in the first image" : ""} with each here, up to ${told(panel.tops[row])}`
      : way === "learning" ? `attention of the last block ${meta.epoch ? `after epoch ${meta.epoch}` : "before training"}, up to ${told(panel.tops[row])} a patch`
      : way === "attention" ? `up to ${share(panel.tops[row])} a patch; even would be ${share(1 / count(meta))}`
      : `${{ rollout: "attention rollout", legrad: "gradients of attention" }[way] ?? "gradient-weighted attention"} through all blocks, up to ${told(panel.tops[row])}`;
    el.dataset.token = name;
  }
  // Says the weight at a place, in every panel; null: what they say otherwise.
  function read(panel, at) {
    panel.reading = at;
    for (const other of panels) {
      const patch = at && patchAt(other, at), row = rowOf(other), columns = other.meta.grid[1];
      if (at === null || patch === null) tell(other);
      else other.mapText.textContent = `patch (${Math.floor(patch / columns) + 1}, ${patch % columns + 1}): ${told(values(other, row)[patch] / 65535 * other.tops[row])}`;
    }
  }
  function drawProbe(panel) {
    const { meta, width, height, class_probe: mean } = panel;
    panel.probeBox.hidden = !meta.class_probe;
    if (!meta.class_probe) return;
    const top = view.choice.scale === "one" ? topOf(panel) : largest(mean), covered = [0, 0, width * meta.cover[1], height * meta.cover[0]];
    heat(sized(panel.probe, width, height), colors(), mean, meta.grid, top, covered);
    panel.probeText.textContent = `class probe of this block, up to ${share(largest(mean))}; cosine with this image's probe ${meta.agreement.toFixed(3)}`;
  }
  // [blocks, heads, side of a tile]: as large as fits, none larger than 40 pixels.
  function tiles({ meta: { overview: [blocks, heads] } }) {
    const room = panels.length < 2 ? 320 : Math.min(320, wide() - (panels.some((p) => p.meta.class_probe) ? side() + 14 : 0));
    return [blocks, heads, between(14, Math.floor(Math.min(320 / blocks, room / heads)), 40)];
  }
  function drawOverview(panel) {
    const { meta } = panel;
    panel.overviewBox.hidden = !meta.overview;
    if (!meta.overview) return;
    panel.overviewText.textContent = `every block (down) and head (across)${panel === panels[0] ? ": click one" : ""}`;
    const [blocks, heads, side] = tiles(panel), size = count(meta), context = sized(panel.overview, heads * side, blocks * side);
    for (let i = 0; i < blocks * heads; i++) {
      const tile = panel.everywhere.subarray(i * size, (i + 1) * size);
      heat(context, colors(), tile, meta.grid, largest(tile), [i % heads * side + 1, Math.floor(i / heads) * side + 1, side - 2, side - 2]);
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
  // Of two panels side by side each has half the width, and its pictures what is left beside the colour bar.
  const wide = () => Math.floor((stage.clientWidth - 18 * (panels.length - 1)) / panels.length);
  const fitted = () => between(110, Math.floor((wide() - SCALE - 24) / 2), PICTURE);
  // Enlarged pictures stand below one another where they have no room, and are no wider than their panel.
  const side = () => between(fitted(), zoom * fitted(), wide() - SCALE - 24);
  function showView(content, buffers) {
    const same = view && view.choice.data === content.choice.data;
    view = content;
    panels = content.panels.map((meta, i) => {
      const [image, weighed, tops, overview, probe] = buffers.slice(5 * i, 5 * i + 5), panel = panels[i] ?? makePanel();
      panel.title.replaceChildren(meta.title, make("span", { className: "quiet", textContent: `  ${meta.prediction}` }));
      return Object.assign(panel, { meta, hover: null, reading: null, image: raster(meta.width, meta.height, array(image, Uint8Array)), weights: array(weighed, Uint16Array), tops: array(tops, Float32Array),
        everywhere: array(overview, Float32Array), class_probe: array(probe, Float32Array) });
    });
    curves.replaceChildren();
    if (stage.childElementCount !== panels.length) stage.replaceChildren(...panels.map((panel) => panel.element));  // focus stays
    showControls();
    redraw();
    if (gallery && same) drawGallery();
    el.dataset.shown = Number(el.dataset.shown || 0) + 1;
  }
  function redraw() {
    stage.style.setProperty("--side", `${side()}px`);
    panels.forEach((panel) => {
      const scaled = side() / Math.max(panel.meta.width, panel.meta.height);
      Object.assign(panel, { width: panel.meta.width * scaled, height: panel.meta.height * scaled });
    });
    panels.forEach((panel) => { draw(panel); drawProbe(panel); drawOverview(panel); });
  }
  // Insertion and deletion of the first panel's weights beside a random order's.
  const curves = div("measured");
  function showMeasured({ shares, ...parts }) {
    const [width, height] = [240, 110], better = { deletion: "smaller", insertion: "larger" };
    curves.replaceChildren(...Object.entries(parts).map(([part, orders]) => {
      const picture = svg("svg", { width, height: height + 2, role: "img" });
      const areas = Object.entries(orders).map(([name, { curve, area }], i) => {
        const at = curve.map((value, k) => [3 + (width - 6) * shares[k], 3 + (height - 6) * (1 - value)]);
        picture.append(svg("polyline", { class: `order${i}`, points: at.map((one) => one.join(",")).join(" ") }));
        at.forEach(([cx, cy], k) => picture.append(svg("circle", { class: `order${i}`, cx, cy, r: 3 },
          svg("title", {}, `${name}: ${percent(curve[k])} with ${percent(shares[k], 0)} of the patches ${part === "deletion" ? "gone" : "there"}`))));
        return `${name} ${area.toFixed(3)}`;
      }).join(", ");
      picture.setAttribute("aria-label", `${part}, areas: ${areas}`);
      return make("figure", {}, picture, make("figcaption", { textContent: `${part} in ${view.choice.model}: area of ${areas} (dashed); ${better[part]} is better` }));
    }));
  }
  // The pictures with their titles, panel below panel, as a PNG.
  function whole() {
    const ratio = window.devicePixelRatio || 1, [gap, line] = [8 * ratio, 20 * ratio];
    const rows = panels.map((panel) => ["picture", "map", "scale", "probe", "overview"].filter((name) => !panel[`${name}Box`].hidden).map((name) => panel[name]));
    const heights = rows.map((row) => line + Math.max(...row.map((one) => one.height)) + gap), canvas = make("canvas");
    canvas.width = Math.max(...rows.map((row) => row.reduce((sum, one) => sum + one.width + gap, gap)));
    canvas.height = heights.reduce((a, b) => a + b, 0);
    const context = canvas.getContext("2d"), style = getComputedStyle(stage);
    Object.assign(context, { fillStyle: style.getPropertyValue("--ground"), font: `${13 * ratio}px sans-serif` });
    context.fillRect(0, 0, canvas.width, canvas.height);
    let top = 0;
    rows.forEach((row, i) => {
      let left = gap;
      context.fillStyle = style.getPropertyValue("--ink");
      context.fillText(panels[i].title.textContent, gap, top + 0.75 * line, canvas.width - 2 * gap);
      for (const one of row) { context.drawImage(one, left, top + line); left += one.width + gap; }
      top += heights[i];
    });
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }
  async function copy() {
    try {
      await navigator.clipboard.write([new ClipboardItem({ "image/png": await whole() })]);
      problem("");
      foot.textContent = "copied";
    } catch (refused) {
      problem(`the browser does not give its clipboard\n  got: ${refused.message}\n  fix: allow it for this page, or Save figure`);
    }
  }
  function receive(content, buffers) {
    if (content.kind === "measured") showMeasured({ shares: content.shares, deletion: content.deletion, insertion: content.insertion });
    if (content.kind === "view") showView(content, buffers);
    if (content.kind === "gallery") showGallery(content, buffers);
    if (content.kind !== "done") return;
    const spent = answered(content.id);
    if (spent === null || content.asked !== "choose") return;
    foot.textContent = `answered in ${Math.round(spent)} ms`;
  }
  // What could not be shown is not what the controls say.
  const failed = () => { show(); if (view) showControls(); };
  const save = (what) => button(`save-${what}`, `Save ${what}`, () => ask({ do: "save", what }));
  const away = mount(model, el, "explorer", "attention, image by image", [
    div("bar", labelled("model", models), labelled("images", data), pick, picker, labelled("beside", compare, partner), kindLabel,
      labelled("weights", weights), epochLabel, labelled("block", block, blockText), labelled("head", head), off, measure, tokens, thresholdLabel,
      labelled("overlay", opacity, opacityText), labelled("colours", colours), labelled("scale", scale), labelled("zoom", zooms)),
    error,
    div("body", div("gallery", div("bar", only, wrongLabel), strip.element, div("bar", before, pageText, after), note), div("shown", stage, curves)),
    div("bar", save("figure"), button("copy", "Copy picture", copy), ...(options.parameters ? [save("parameters")] : []), foot), saved,
  ], { "msg:custom": receive, "change:saved": show, "change:error": failed }, () => { if (view) redraw(); });
  show();
  ask({ do: "ready" });
  return away;
}

export default { render };
