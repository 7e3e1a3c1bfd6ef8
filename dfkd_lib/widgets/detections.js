// The front end of DetectionBrowser. Every box and score is sent once, so that the threshold, the counts and the filters
// need no kernel: it is asked only for pixels and for the attention of detections.

const IOU = 0.5;             // from which a detection and an object are paired
const GAP = 14;              // between pictures, in CSS pixels
const PICTURE = [150, 380];  // their side, from and to
const LOADING = "the detectors are run on these scenes …";
const FAULTS = ["missed", "false", "wrong"];
const SIGNS = { right: "✓", wrong: "≠", false: "+", missed: "−" };
const WORDS = { right: "right", wrong: "wrong class", false: "false", missed: "missed" };
const LISTS = { "": "all scenes", missed: "missed objects", false: "false detections", wrong: "wrong class", right: "all right" };
const HEADS = [["detector", ""], ["precision", "right of all detections"], ["recall", "right of all objects"],
  ["✓ right", "detections paired with an object of their class (true positives)"], ["≠ wrong class", "paired with an object of another class"],
  ["+ false", "paired with no object (false positives)"], ["− missed", "objects that no detection is paired with"]];
const inWords = (counts) => Object.entries(counts).filter(([, n]) => n).map(([kind, n]) => `${n} ${WORDS[kind]}`).join(", ");

function overlap([ax, ay, aw, ah], [bx, by, bw, bh]) {
  const wide = Math.min(ax + aw / 2, bx + bw / 2) - Math.max(ax - aw / 2, bx - bw / 2);
  const high = Math.min(ay + ah / 2, by + bh / 2) - Math.max(ay - ah / 2, by - bh / 2);
  return wide <= 0 || high <= 0 ? 0 : wide * high / (aw * ah + bw * bh - wide * high);
}

// Each scene's boxes as they were sent: [{box, label, score, query}].
function unpack([starts, boxes, labels, scores, queries]) {
  const begin = array(starts, Int32Array), flat = array(boxes, Float32Array), label = array(labels, Int32Array);
  const score = scores && array(scores, Float32Array), query = queries && array(queries, Int32Array);
  const at = (i) => ({ box: Array.from(flat.subarray(4 * i, 4 * i + 4)), label: label[i], score: score?.[i], query: query?.[i] });
  return Array.from({ length: begin.length - 1 }, (_, scene) =>
    Array.from({ length: begin[scene + 1] - begin[scene] }, (_, k) => at(begin[scene] + k)));
}

// Pairs of a scene's detections and objects that overlap enough, the greatest overlap first.
function pairsOf(found, truth) {
  return found.flatMap((detection, d) => truth.map((object, t) => [overlap(detection.box, object.box), d, t]))
    .filter(([iou]) => iou >= IOU).sort((a, b) => b[0] - a[0]);
}

// What became of a scene at a threshold: of each detection its kind and its object (or null), of each object if missed.
function outcomeOf(found, truth, pairs, threshold) {
  const from = Math.fround(threshold), object = found.map(() => null), taken = truth.map(() => false);
  for (const [, d, t] of pairs) {
    if (found[d].score < from || object[d] !== null || taken[t]) continue;
    object[d] = t;
    taken[t] = true;
  }
  const kinds = found.map((detection, d) => (detection.score < from ? null
    : object[d] === null ? "false" : truth[object[d]].label === detection.label ? "right" : "wrong"));
  return { kinds, object, missed: taken.map((is) => !is) };
}
function countsOf({ kinds, missed }) {
  const counts = { right: 0, wrong: 0, false: 0, missed: missed.filter((is) => is).length };
  for (const kind of kinds) if (kind) counts[kind] += 1;
  return counts;
}

// Sampling points, [x, y, weight, scale] each: colour is the scale, area the weight.
function dots(context, flat, width, height, shades) {
  const all = Array.from({ length: flat.length / 4 }, (_, i) => flat.subarray(4 * i, 4 * i + 4)).sort((a, b) => a[2] - b[2]);
  const most = all.length ? all[all.length - 1][2] : 1;
  context.lineWidth = 1;
  context.strokeStyle = "black";
  for (const [x, y, weight, scale] of all) {
    context.fillStyle = shades[scale % shades.length];
    context.beginPath();
    context.arc(x * width, y * height, 1.2 + 5 * Math.sqrt(weight / most), 0, 2 * Math.PI);
    context.fill();
    context.stroke();
  }
}

// A map that forgets its oldest entries.
class Kept extends Map {
  constructor(most) { super(); this.most = most; }
  set(key, value) {
    if (super.set(key, value).size > this.most) this.delete(this.keys().next().value);
    return this;
  }
}

function render({ model, el }) {
  const options = model.get("options"), names = options.detectors, { error, saved, show, problem } = reports(model);
  let view = { ...model.get("view") }, set = null, outcomes = [], totals = [], shown = [], timer = 0, busy = LOADING;
  const images = new Kept(64), thumbs = new Kept(1280), looks = new Kept(64), tallies = new Kept(8);
  const colour = (label) => options.colors[label % options.colors.length];
  const className = (label) => set.classes[label] ?? String(label);
  const key = (...parts) => parts.join(" ");
  const busyText = make("span", { className: "quiet", aria: { live: "polite" } });
  const { ask, answered } = asker(model, (waiting) => {
    busyText.textContent = waiting ? busy || "asking the kernel …" : "";
    el.dataset.waiting = waiting;
  });

  // -- the view: changed here first, then sent to the kernel -----------------------------------------------------------
  function go(changes, soon = false) {
    const before = view;
    view = { ...view, ...changes };
    problem("");
    if (view.data !== before.data) {
      set = null;
      busy = LOADING;
      ask({ do: "scenes", data: view.data });
    } else if (set) {
      if (view.threshold !== before.threshold) count();
      if (["threshold", "outcome", "of", "label"].some((name) => view[name] !== before[name])) choose();
      draw();
    }
    clearTimeout(timer);
    timer = setTimeout(tell, soon ? 0 : 150);
  }
  function tell() {
    clearTimeout(timer);
    model.set("view", { ...view });
    model.set("counts", set ? Object.fromEntries(names.map((name, n) => [name, totals[n]])) : {});
    model.save_changes();
  }

  // -- counting --------------------------------------------------------------------------------------------------------
  function count() {
    outcomes = set.found.map((found, n) => found.map((own, i) => outcomeOf(own, set.truth[i], set.pairs[n][i], view.threshold)));
    totals = outcomes.map((scenes) => scenes.map(countsOf).reduce((sum, one) =>
      Object.fromEntries(Object.keys(WORDS).map((kind) => [kind, sum[kind] + one[kind]])), { right: 0, wrong: 0, false: 0, missed: 0 }));
  }
  // Of each scene how many faults of a kind, and of a class, there are: the most that one of the detectors meant has.
  function tally(label) {
    const what = key(view.data, view.threshold, view.of, label);
    if (!tallies.has(what)) tallies.set(what, set.truth.map((truth, scene) => tallyOf(truth, scene, label)));
    return tallies.get(what);
  }
  function tallyOf(truth, scene, label) {
    const most = { missed: 0, false: 0, wrong: 0 }, meant = (...labels) => label < 0 || labels.includes(label);
    let there = label < 0 || truth.some((object) => object.label === label);
    names.forEach((name, n) => {
      if (view.of && view.of !== name) return;
      const { kinds, object, missed } = outcomes[n][scene], found = set.found[n][scene];
      const own = kinds.map((kind, d) => (kind && meant(found[d].label, truth[object[d]]?.label) ? kind : null));
      const counts = countsOf({ kinds: own, missed: missed.map((is, t) => is && meant(truth[t].label)) });
      there ||= own.some((kind) => kind);
      for (const kind of FAULTS) most[kind] = Math.max(most[kind], counts[kind]);
    });
    return { ...most, there };
  }
  function filtered(outcome, label) {
    const own = tally(label), all = tally(-1);
    const fits = { "": (i) => own[i].there, right: (i) => own[i].there && !FAULTS.some((kind) => all[i][kind]) };
    return own.map((_, i) => i).filter(fits[outcome] ?? ((i) => own[i][outcome] > 0));
  }
  // The scenes that the filters leave; the present one stays if it is one of them.
  function choose() {
    shown = filtered(view.outcome, view.label);
    if (shown.length && !shown.includes(view.scene)) {
      view = { ...view, scene: shown.find((i) => i > view.scene) ?? shown[shown.length - 1], chosen: "" };
    }
  }

  // -- the controls ----------------------------------------------------------------------------------------------------
  const data = select("data", (value) => go({ data: value, scene: 0, label: -1, chosen: "" }));
  const outcome = select("outcome", (value) => go({ outcome: value })), of = select("of", (value) => go({ of: value }));
  const label = select("class", (value) => go({ label: Number(value) }));
  const range = { min: options.faint, max: 1, step: 0.01 };
  const threshold = slider("threshold", "threshold of the score", range, (value) => go({ threshold: value }));
  const number = (className, name, props, typed) => make("input", { type: "number", className, aria: { label: name }, ...props, onchange: typed });
  const exact = number("exact", "threshold of the score, as a number", range, () => typed(exact, "threshold", options.faint, 1));
  const place = number("place", "number of the scene", { min: 0, step: 1 }, () => typed(place, "scene", 0, set ? set.count - 1 : 0));
  function typed(input, name, low, high) {
    const value = input.value.trim() === "" ? NaN : Number(input.value), whole = name === "scene";
    const fits = value >= low && value <= high && (!whole || Number.isInteger(value));
    input.setAttribute("aria-invalid", !fits);
    if (!fits) problem(`no such ${name}\n  expected: ${whole ? "a whole number " : ""}${low}..${high}\n  got: ${input.value || "nothing"}`);
    else if (whole) go({ ...(shown.includes(value) ? {} : { outcome: "", label: -1 }), scene: value, chosen: "" });
    else go({ [name]: value });
  }
  function step(by) {
    const at = shown.indexOf(view.scene), next = shown[at < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, at + by))];
    if (next !== undefined && next !== view.scene) go({ scene: next, chosen: "" });
  }
  const before = button("before", "◀ previous", () => step(-1), "previous scene of this list (←)");
  const after = button("after", "next ▶", () => step(1), "next scene of this list (→)");
  const position = make("span", { className: "quiet position" });

  // -- the numbers -----------------------------------------------------------------------------------------------------
  const body = make("tbody"), cell = (text) => make("td", { textContent: text });
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...HEADS.map(([textContent, title]) => make("th", { textContent, title, scope: "col" })))), body);
  function drawTable() {
    const objects = set.truth.reduce((sum, scene) => sum + scene.length, 0);
    const ratio = (part, whole) => (whole ? percent(part / whole) : "–");
    body.replaceChildren(...names.map((name, n) => {
      const { right, wrong, false: none, missed } = totals[n];
      return make("tr", {}, make("th", { textContent: name, scope: "row" }), cell(ratio(right, right + wrong + none)), cell(ratio(right, objects)),
        ...[right, wrong, none, missed].map((value) => cell(grouped(value))));
    }));
  }

  // -- the strip of scenes ---------------------------------------------------------------------------------------------
  const room = () => Math.max(3, Math.floor((el.clientWidth - 8) / (options.thumb + 10)));
  const steps = () => ({ ArrowRight: 1, ArrowLeft: -1, PageDown: room(), PageUp: -room(), Home: -shown.length, End: shown.length });
  const strip = thumbnails("strip", "scenes of this list", options.thumb, steps, (scene) => go({ scene, chosen: "" }), step);
  function drawStrip() {
    const size = room(), where = shown.indexOf(view.scene), at = Math.max(0, where);
    const first = Math.max(0, Math.min(at - Math.floor(size / 2), shown.length - size));
    const lacks = (i) => !thumbs.has(key(view.data, i)), page = shown.slice(first, first + size);
    if (page.some(lacks)) ask({ do: "thumbs", data: view.data, rows: shown.slice(first, first + 2 * size).filter(lacks) });
    strip.draw(page.map((i) => {
      const { there, ...faults } = tally(-1)[i], bad = FAULTS.some((kind) => faults[kind]);
      const text = FAULTS.filter((kind) => faults[kind]).map((kind) => `${SIGNS[kind]}${faults[kind]}`).join("\u2009") || SIGNS.right;
      return { id: i, picture: thumbs.get(key(view.data, i)), title: `scene ${i}: ${inWords(faults) || "all right"}`, text, bad };
    }), view.scene);
    const listed = shown.length < set.count ? `; ${grouped(where + 1)} of ${grouped(shown.length)} in this list` : "";
    position.textContent = `of ${grouped(set.count)}${shown.length ? listed : "; no scene is like this at this threshold"}`;
    before.disabled = where <= 0;
    after.disabled = where < 0 || where >= shown.length - 1;
  }

  // -- the pictures ----------------------------------------------------------------------------------------------------
  const detectionsOf = (n) => set.found[n][view.scene].filter((_, i) => outcomes[n][view.scene].kinds[i]);
  const panels = names.map((name, n) => {
    const canvas = make("canvas", { className: "picture", aria: { role: "img" } });
    const under = (event) => {
      const own = set ? detectionsOf(n) : [];
      return own[smallest(own.map((d) => d.box), event.offsetX / canvas.clientWidth, event.offsetY / canvas.clientHeight)] ?? null;
    };
    canvas.onclick = (event) => pickOut(n, under(event));
    canvas.onmousemove = (event) => { canvas.style.cursor = under(event) ? "pointer" : ""; };
    const panel = { canvas, n, text: make("figcaption"), list: make("ul"), title: make("h4", { textContent: name }) };
    return { ...panel, element: make("figure", {}, panel.title, canvas, panel.text, panel.list) };
  });
  function pickOut(n, detection) {
    const same = detection && view.chosen === names[n] && view.query === detection.query;
    go(!detection || same ? { chosen: "" } : { chosen: names[n], query: detection.query });
  }
  // For each detector the detection whose attention is shown: the chosen one, and what overlaps it most under the others.
  function looking() {
    const source = names.indexOf(view.chosen), chosen = source < 0 ? null : detectionsOf(source).find((d) => d.query === view.query);
    const best = (n) => detectionsOf(n).map((d) => [overlap(d.box, chosen.box), d]).filter(([iou]) => iou >= IOU).sort((a, b) => b[0] - a[0])[0];
    return names.map((_, n) => (!chosen || n === source ? chosen || null : best(n)?.[1] ?? null));
  }
  const lookKey = () => key(view.data, view.scene, view.block, view.head);
  const weightsOf = (look, { query }) => look.weights.subarray(query * look.count, (query + 1) * look.count);
  function side() {
    const across = el.clientWidth < 2 * PICTURE[0] + GAP + 16 ? 1 : Math.min(names.length, Math.floor(el.clientWidth / (PICTURE[0] + GAP)));
    return Math.round(Math.max(PICTURE[0], Math.min(PICTURE[1], (el.clientWidth - 16 - GAP * (across - 1)) / across)));
  }
  function drawPanel({ canvas, n, text, list, title }, looked) {
    const scale = side() / Math.max(set.width, set.height), width = set.width * scale, height = set.height * scale;
    const context = sized(canvas, width, height), image = images.get(key(view.data, view.scene)), look = looks.get(lookKey())?.[n];
    const outcome = outcomes[n][view.scene], truth = set.truth[view.scene], own = detectionsOf(n);
    if (image) context.drawImage(image, 0, 0, width, height);
    const points = looked && look?.points;
    if (looked && look?.weights.length && !points) {
      const weights = weightsOf(look, looked);
      context.globalAlpha = overlay.value / 100;
      heat(context, options.heat, weights, look.grid, largest(weights), [0, 0, width, height]);
      context.globalAlpha = 1;
    }
    truth.forEach((object) => outline(context, object.box, width, height, colour(object.label), 2, [2, 3]));
    own.forEach((d) => outline(context, d.box, width, height, colour(d.label), looked === d ? 4 : 2.2));
    if (points) {
      context.globalAlpha = 0.25 + 0.75 * overlay.value / 100;
      dots(context, weightsOf(look, looked), width, height, options.scales);
      context.globalAlpha = 1;
    }
    // Names stand off the boxes, and off each other, where there is room.
    const taken = [...own, ...truth].map(({ box }) => corner(box, width, height)).map(([x, y, w, h]) => [x, y, x + w, y + h, 0.3]);
    own.forEach((d) => tag(context, d.box, `${className(d.label)} ${d.score.toFixed(2)}`, width, height, colour(d.label), taken));
    title.style.maxWidth = text.style.maxWidth = list.style.maxWidth = `${width}px`;
    const summary = inWords(countsOf(outcome));
    text.textContent = lookText(looked, look) || summary || "no object here, and none found";
    canvas.setAttribute("aria-label", `${names[n]}, scene ${view.scene}: ${summary || "no detections and no objects"}`);
    drawList(n, list, outcome, looked);
  }
  function lookText(looked, look) {
    if (!view.chosen) return "";
    if (!looked) return "no detection of the same object here";
    if (!look) return "asking for its attention …";
    const flat = look.why ? [] : weightsOf(look, looked), top = look.points ? largest(flat.filter((_, i) => i % 4 === 2)) : largest(flat);
    const among = look.points ? `${look.points} points, ` : "";
    return look.why || `query ${looked.query}: decoder block ${look.block + 1} of ${look.blocks}, ${look.head < 0
      ? look.points ? "all heads" : "mean of heads" : `head ${look.head + 1}`}, ${among}up to ${percent(top)} a ${look.points ? "point" : "patch"}`;
  }
  // The same in words, to be read and pressed without a mouse.
  function drawList(n, list, { kinds, object, missed }, looked) {
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.query : null, truth = set.truth[view.scene];
    const dot = (k) => { const i = make("i"); i.style.background = colour(k); return i; };
    const lines = set.found[n][view.scene].flatMap((d, i) => {
      if (!kinds[i]) return [];
      const note = { wrong: () => `≠ is ${className(truth[object[i]].label)}`, false: () => "+ false", right: () => "✓" }[kinds[i]]();
      return [make("li", {}, make("button", { className: kinds[i], title: "show its attention", onclick: () => pickOut(n, d),
        data: { query: d.query }, aria: { pressed: looked === d } }, dot(d.label), `${className(d.label)} ${d.score.toFixed(2)} `,
      make("em", { textContent: note })))];
    });
    list.replaceChildren(...lines, ...truth.filter((_, t) => missed[t]).map((o) => make("li", { className: "missed" }, dot(o.label), `− missed: ${className(o.label)}`)));
    if (focused !== null) list.querySelector(`[data-query="${focused}"]`)?.focus();
  }

  // -- the attention of a detection ------------------------------------------------------------------------------------
  const block = select("block", (value) => go({ block: Number(value) })), head = select("head", (value) => go({ head: Number(value) }));
  const overlay = slider("overlay", "strength of the overlay", { min: 0, max: 100, value: 60 }, () => draw());
  fill(block, Array.from({ length: options.blocks }, (_, i) => [-1 - i, i ? `${i} before the last` : "last"]), view.block);
  fill(head, [[-1, "mean"], ...Array.from({ length: options.heads }, (_, i) => [i, String(i + 1)])], view.head);
  const hint = make("span", { className: "quiet", textContent: "Dotted: true boxes. Click a detection to see its query's attention." });
  const scales = make("span", { className: "quiet scales" });
  const looksBar = div("bar", labelled("decoder block", block), labelled("head", head), labelled("overlay", overlay), scales,
    button("", "hide attention", () => go({ chosen: "" })));

  // -- drawing all -----------------------------------------------------------------------------------------------------
  function draw() {
    if (!set) return;
    fill(outcome, Object.entries(LISTS).map(([one, text]) => [one, `${text} (${grouped(filtered(one, view.label).length)})`]), view.outcome);
    fill(label, [[-1, "any class"], ...set.classes.map((name, k) => [k, name])], view.label);
    fill(of, [["", "any detector"], ...names.map((name) => [name, name])], view.of);
    fill(data, options.data.map((name) => [name, name]), view.data);
    threshold.value = view.threshold;
    exact.value = view.threshold.toFixed(2);
    place.value = view.scene;
    for (const input of [exact, place]) input.removeAttribute("aria-invalid");
    block.value = String(view.block);
    head.value = String(view.head);
    drawTable();
    drawStrip();
    if (!images.has(key(view.data, view.scene))) fetchImages();
    if (view.chosen && !looks.has(lookKey())) ask({ do: "look", data: view.data, scene: view.scene, block: view.block, head: view.head });
    const looked = looking();
    looksBar.hidden = !view.chosen;
    hint.hidden = Boolean(view.chosen);
    const sampled = (looks.get(lookKey()) ?? []).filter((look) => look.points && look.weights.length);
    const count = Math.max(0, ...sampled.map((look) => 1 + largest(look.weights.subarray(0, look.count).filter((_, i) => i % 4 === 3))));
    scales.replaceChildren(...options.scales.slice(0, count).map((shade, k) => {
      const mark = make("i");
      mark.style.background = shade;
      return make("span", {}, mark, ` scale ${k + 1}${k ? "" : " (finest)"} `);
    }));
    panels.forEach((panel) => { panel.title.style.minHeight = ""; drawPanel(panel, looked[panel.n]); });
    const highest = `${Math.max(...panels.map((panel) => panel.title.offsetHeight))}px`;
    panels.forEach((panel) => { panel.title.style.minHeight = highest; });
    Object.assign(el.dataset, { scene: view.scene, list: shown.length, threshold: view.threshold,
      boxes: names.map((_, n) => detectionsOf(n).length).join(" "),
      looks: names.filter((_, n) => looked[n] && looks.get(lookKey())?.[n].weights.length).length });
  }
  // The scene, and a few that are likely to be next.
  function fetchImages() {
    const at = shown.indexOf(view.scene), ahead = set.width * set.height < 40000 ? 8 : 1;
    const rows = [view.scene, ...(at < 0 ? [] : shown.slice(at + 1, at + 1 + ahead))].filter((i) => !images.has(key(view.data, i)));
    ask({ do: "images", data: view.data, rows });
  }

  // -- answers from the kernel -----------------------------------------------------------------------------------------
  function receive(content, buffers) {
    const { kind, rows } = content;
    if (kind === "done") return answered(content.id);
    if (content.data !== view.data || (kind !== "scenes" && !set)) return null;  // of scenes that are no longer shown
    if (kind === "scenes") {
      busy = "";
      const truth = unpack(buffers.slice(0, 3)), found = names.map((_, n) => unpack(buffers.slice(3 + 5 * n, 8 + 5 * n)));
      set = { ...content, truth, found, pairs: found.map((scenes) => scenes.map((own, i) => pairsOf(own, truth[i]))) };
      tallies.clear();
      count();
      choose();
      tell();
    } else if (kind === "images") {
      rows.forEach((row, i) => images.set(key(content.data, row), raster(set.width, set.height, array(buffers[i], Uint8Array))));
    } else if (kind === "thumbs") {
      const rgb = array(buffers[0], Uint8Array), size = 3 * options.thumb ** 2;
      rows.forEach((row, i) => thumbs.set(key(content.data, row), raster(options.thumb, options.thumb, rgb.subarray(i * size, (i + 1) * size))));
    } else if (kind === "look") {
      looks.set(key(content.data, content.scene, content.block, content.head), content.looks.map((look, n) => ({ ...look,
        count: look.points ? 4 * look.points : look.grid[0] * look.grid[1], weights: array(buffers[n], Float32Array) })));
    }
    return draw();
  }
  const changed = () => {
    const asked = model.get("view");
    if (Object.keys(asked).some((name) => asked[name] !== view[name])) go(asked, true);
  };
  const save = button("save-figure", "Save figure", () => ask({ do: "save", view: { ...view } }), "this scene as svg, pdf and png");
  looksBar.hidden = true;
  const away = mount(model, el, "browse", "detections, scene by scene", [
    div("bar", ...(options.data.length > 1 ? [labelled("scenes", data)] : []), labelled("show", outcome),
      ...(names.length > 1 ? [labelled("of", of)] : []), labelled("class", label), labelled("score from", threshold, exact)),
    div("scroll", table), error,
    div("bar", before, labelled("scene", place), position, after, busyText), strip.element,
    div("stage", ...panels.map((panel) => panel.element)), div("below", hint, looksBar), div("bar", save, saved),
  ], { "msg:custom": receive, "change:view": changed, "change:error": () => problem(""), "change:saved": show }, draw);
  show();
  ask({ do: "scenes", data: view.data });
  return () => { clearTimeout(timer); away(); };
}

export default { render };
