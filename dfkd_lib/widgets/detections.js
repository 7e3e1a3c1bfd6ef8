// The front end of DetectionBrowser. Every box and score is sent once, so that the threshold, the counts and the filters
// need no kernel: it is asked only for pixels and for where a detection looks.

const IOU = 0.5;          // from which a detection and an object are paired
const GAP = 14;           // between pictures, in CSS pixels
const PICTURE = [150, 380];  // their side, from and to
const KEPT = 64;          // scenes whose pixels, and looks, are kept
const SIGNS = { right: "✓", wrong: "≠", false: "+", missed: "−" };
const WORDS = { right: "right", wrong: "wrong class", false: "false", missed: "missed" };

const make = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children);
  return element;
};
const aria = (element, attributes) => {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};
const bytes = (view) => view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
const percent = (part, whole) => (whole ? `${(100 * part / whole).toFixed(1)} %` : "–");
const number = (value) => value.toLocaleString("en");

function fill(select, options, value) {
  select.replaceChildren(...options.map(([key, text]) => make("option", { value: key, textContent: text })));
  select.value = String(value);
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

// RGB bytes as a small canvas that can be drawn at any size.
function raster(width, height, rgb) {
  const canvas = make("canvas", { width, height }), context = canvas.getContext("2d");
  const data = context.createImageData(width, height);
  for (let from = 0, to = 0; from < 3 * width * height; from += 3, to += 4) {
    data.data[to] = rgb[from];
    data.data[to + 1] = rgb[from + 1];
    data.data[to + 2] = rgb[from + 2];
    data.data[to + 3] = 255;
  }
  context.putImageData(data, 0, 0);
  return canvas;
}

function overlap([ax, ay, aw, ah], [bx, by, bw, bh]) {
  const wide = Math.min(ax + aw / 2, bx + bw / 2) - Math.max(ax - aw / 2, bx - bw / 2);
  const high = Math.min(ay + ah / 2, by + bh / 2) - Math.max(ay - ah / 2, by - bh / 2);
  if (wide <= 0 || high <= 0) return 0;
  return wide * high / (aw * ah + bw * bh - wide * high);
}

// Boxes of all scenes as they were sent; `of(scene)` gives one scene's as [{box, label, score, query}].
function unpack([starts, boxes, labels, scores, queries]) {
  const begin = new Int32Array(bytes(starts)), flat = new Float32Array(bytes(boxes)), label = new Int32Array(bytes(labels));
  const score = scores && new Float32Array(bytes(scores)), query = queries && new Int32Array(bytes(queries));
  return Array.from({ length: begin.length - 1 }, (_, scene) =>
    Array.from({ length: begin[scene + 1] - begin[scene] }, (_, k) => {
      const i = begin[scene] + k;
      return { box: Array.from(flat.subarray(4 * i, 4 * i + 4)), label: label[i], score: score && score[i], query: query && query[i] };
    }));
}

// Pairs of a scene's detections and objects that overlap enough, the greatest overlap first.
function pairsOf(found, truth) {
  const pairs = [];
  found.forEach((detection, d) => truth.forEach((object, t) => {
    const iou = overlap(detection.box, object.box);
    if (iou >= IOU) pairs.push([iou, d, t]);
  }));
  return pairs.sort((a, b) => b[0] - a[0]);
}

// What became of a scene at a threshold: for each detection its kind and its object (or null), for each object if missed.
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

function render({ model, el }) {
  const options = model.get("options"), names = options.detectors;
  let view = { ...model.get("view") }, set = null, outcomes = [], shown = [], timer = 0, serial = 0, asked = new Map(), busy = "";
  const images = new Map(), thumbs = new Map(), looks = new Map();
  const colour = (label) => options.colors[label % options.colors.length];
  const ink = (text) => {
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
    return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#000" : "#fff";
  };
  const className = (label) => set.classes[label] ?? String(label);
  const keep = (map, key, value) => {
    map.set(key, value);
    if (map.size > KEPT * (map === thumbs ? 20 : 1)) map.delete(map.keys().next().value);
  };

  // -- asking the kernel -----------------------------------------------------------------------------------------------
  function ask(content, key = JSON.stringify(content)) {
    if ([...asked.values()].includes(key)) return;
    asked.set(++serial, key);
    model.send({ ...content, id: serial });
    wait();
  }
  const wait = () => { busyText.textContent = asked.size ? busy || "asking the kernel …" : ""; el.dataset.waiting = asked.size; };

  // -- the view: changed here first, then told to the kernel -----------------------------------------------------------
  function go(changes, soon = false) {
    const before = view;
    view = { ...view, ...changes };
    problem("");
    if (view.data !== before.data) { load(); } else if (set) {
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
    model.set("counts", set ? Object.fromEntries(names.map((name, n) => [name, { ...totals[n] }])) : {});
    model.save_changes();
  }
  function load() {
    set = null;
    busy = "the detectors look at these scenes …";
    ask({ do: "scenes", data: view.data });
  }

  // -- counting --------------------------------------------------------------------------------------------------------
  let totals = [];
  function count() {
    outcomes = set.found.map((found, n) => found.map((detections, i) =>
      outcomeOf(detections, set.truth[i], set.pairs[n][i], view.threshold)));
    totals = outcomes.map((scenes) => {
      const sum = { right: 0, wrong: 0, false: 0, missed: 0 };
      for (const scene of scenes) {
        for (const kind of scene.kinds) if (kind) sum[kind] += 1;
        for (const missed of scene.missed) if (missed) sum.missed += 1;
      }
      return sum;
    });
  }
  // Of each scene how many detections or objects of a kind, and of a class, there are under the detectors that are meant:
  // the most that one of them has. Counted anew only where something has changed.
  const tallies = new Map();
  function tally(label) {
    const key = JSON.stringify([view.data, view.threshold, view.of, label]);
    if (!tallies.has(key)) {
      if (tallies.size > 8) tallies.clear();
      tallies.set(key, set.truth.map((truth, scene) => tallyOf(truth, scene, label)));
    }
    return tallies.get(key);
  }
  function tallyOf(truth, scene, label) {
    const most = { missed: 0, false: 0, wrong: 0, there: label < 0 || truth.some((object) => object.label === label) };
    names.forEach((name, n) => {
      if (view.of && view.of !== name) return;
      const { kinds, object, missed } = outcomes[n][scene], here = { missed: 0, false: 0, wrong: 0, right: 0 };
      missed.forEach((is, t) => { if (is && (label < 0 || truth[t].label === label)) here.missed += 1; });
      kinds.forEach((kind, d) => {
        const said = set.found[n][scene][d].label, is = object[d] === null ? said : truth[object[d]].label;
        if (!kind || (label >= 0 && said !== label && is !== label)) return;
        here[kind] += 1;
        most.there = true;
      });
      for (const kind of ["missed", "false", "wrong"]) most[kind] = Math.max(most[kind], here[kind]);
    });
    return most;
  }
  const isFaulty = (counts) => counts.missed + counts.false + counts.wrong > 0;
  function belongs(scene, outcome, label) {
    const own = tally(label)[scene];
    if (outcome === "") return own.there;
    return outcome === "right" ? own.there && !isFaulty(tally(-1)[scene]) : own[outcome] > 0;
  }
  const filtered = (outcome, label) => Array.from({ length: set.count }, (_, i) => i).filter((i) => belongs(i, outcome, label));
  // The scenes that the filters leave; the present one stays if it is one of them.
  function choose() {
    shown = filtered(view.outcome, view.label);
    if (shown.length && !shown.includes(view.scene)) {
      const next = shown.find((i) => i > view.scene);
      view = { ...view, scene: next ?? shown[shown.length - 1], chosen: "" };
    }
  }

  // -- the controls ----------------------------------------------------------------------------------------------------
  const labelled = (text, ...children) => make("label", {}, make("span", { textContent: text }), ...children);
  const data = make("select", { className: "data", onchange: () => go({ data: data.value, scene: 0, label: -1, chosen: "" }) });
  const outcome = make("select", { className: "outcome", onchange: () => go({ outcome: outcome.value }) });
  const of = make("select", { className: "of", onchange: () => go({ of: of.value }) });
  const label = make("select", { className: "class", onchange: () => go({ label: Number(label.value) }) });
  const slider = aria(make("input", { className: "threshold", type: "range", min: options.faint, max: 1, step: 0.01,
    oninput: () => go({ threshold: Number(slider.value) }) }), { "aria-label": "threshold of the score" });
  const exact = aria(make("input", { className: "exact", type: "number", min: options.faint, max: 1, step: 0.01,
    onchange: () => typed(exact, "threshold", options.faint, 1, false) }), { "aria-label": "threshold of the score, as a number" });
  const place = aria(make("input", { className: "place", type: "number", min: 0, step: 1,
    onchange: () => typed(place, "scene", 0, set ? set.count - 1 : 0, true) }), { "aria-label": "number of the scene" });
  const step = (by) => {
    if (!shown.length) return;
    const at = shown.indexOf(view.scene);
    const next = at < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, at + by));
    if (shown[next] !== view.scene) go({ scene: shown[next], chosen: "" });
  };
  const before = make("button", { className: "before", textContent: "◀ previous", title: "previous scene of this list (←)", onclick: () => step(-1) });
  const after = make("button", { className: "after", textContent: "next ▶", title: "next scene of this list (→)", onclick: () => step(1) });
  const position = make("span", { className: "quiet position" });
  function typed(input, name, low, high, whole) {
    const value = input.value.trim() === "" ? NaN : Number(input.value);
    const fits = Number.isFinite(value) && value >= low && value <= high && (!whole || Number.isInteger(value));
    input.setAttribute("aria-invalid", String(!fits));
    if (!fits) {
      problem(`no such ${name}\n  expected: ${whole ? "a whole number " : ""}${low}..${high}\n  got: ${input.value || "nothing"}`);
      return;
    }
    if (name === "scene" && !shown.includes(value)) go({ outcome: "", label: -1, scene: value, chosen: "" });
    else go(name === "scene" ? { scene: value, chosen: "" } : { [name]: value });
  }
  const error = aria(make("div", { className: "error" }), { role: "alert" });
  let said = "";  // what is wrong here; what the kernel says comes by its trait
  const problem = (text) => { said = text; showError(); };
  const showError = () => { error.textContent = said || model.get("error"); };
  const busyText = aria(make("span", { className: "quiet busy" }), { "aria-live": "polite" });

  // -- the numbers -----------------------------------------------------------------------------------------------------
  const body = make("tbody");
  const heads = [["detector", ""], ["precision", "right of all detections"], ["recall", "right of all objects"],
    ["✓ right", "detections paired with an object of their class (true positives)"], ["≠ wrong class", "paired with an object of another class"],
    ["+ false", "paired with no object (false positives)"], ["− missed", "objects that no detection is paired with"]];
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads.map(([text, title]) => aria(make("th", { textContent: text, title }), { scope: "col" })))), body);
  function drawTable() {
    const objects = set.truth.reduce((sum, scene) => sum + scene.length, 0);
    body.replaceChildren(...names.map((name, n) => {
      const { right, wrong, false: none, missed } = totals[n];
      const cells = [percent(right, right + wrong + none), percent(right, objects), ...[right, wrong, none, missed].map(number)];
      const line = make("tr", {}, aria(make("th", { textContent: name }), { scope: "row" }), ...cells.map((text) => make("td", { textContent: text })));
      line.dataset.right = right;
      return line;
    }));
  }

  // -- the strip of scenes ---------------------------------------------------------------------------------------------
  const strip = aria(make("div", { className: "strip" }), { role: "group", "aria-label": "scenes of this list" });
  const room = () => Math.max(3, Math.floor((el.clientWidth - 8) / (options.thumb + 10)));
  const marks = (scene) => ["missed", "false", "wrong"].map((kind) => [kind, tally(-1)[scene][kind]]).filter(([, n]) => n);
  function drawStrip() {
    const size = room(), at = Math.max(0, shown.indexOf(view.scene));
    const first = Math.max(0, Math.min(at - Math.floor(size / 2), shown.length - size)), page = shown.slice(first, first + size);
    const missing = page.filter((i) => !thumbs.has(`${view.data} ${i}`));
    if (missing.length) ask({ do: "thumbs", data: view.data, rows: shown.slice(first, first + 2 * size).filter((i) => !thumbs.has(`${view.data} ${i}`)) });
    const focused = strip.contains(document.activeElement);
    strip.replaceChildren(...page.map((i) => {
      const canvas = make("canvas"), context = sized(canvas, options.thumb, options.thumb), picture = thumbs.get(`${view.data} ${i}`);
      if (picture) context.drawImage(picture, 0, 0);
      const found = marks(i), text = found.map(([kind, n]) => `${SIGNS[kind]}${n}`).join("\u2009") || SIGNS.right;
      const told = found.map(([kind, n]) => `${n} ${WORDS[kind]}`).join(", ") || "all right";
      const button = make("button", { title: `scene ${i}: ${told}`, onclick: () => go({ scene: i, chosen: "" }) }, canvas,
        make("span", { textContent: text, className: found.length ? "bad" : "good" }));
      button.dataset.scene = i;
      if (i === view.scene) button.tabIndex = 0; else button.tabIndex = -1;
      return aria(button, { "aria-label": `scene ${i}: ${told}`, "aria-current": String(i === view.scene) });
    }));
    if (focused) strip.querySelector("[aria-current=true]")?.focus();
    const where = shown.indexOf(view.scene);
    position.textContent = shown.length ? `of ${number(set.count)}${shown.length < set.count ? `; ${number(where + 1)} of ${number(shown.length)} in this list` : ""}`
      : `of ${number(set.count)}; no scene is like this at this threshold`;
    before.disabled = where <= 0;
    after.disabled = where < 0 || where >= shown.length - 1;
  }
  strip.onkeydown = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, PageDown: room(), PageUp: -room(), Home: -shown.length, End: shown.length }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  };

  // -- the pictures ----------------------------------------------------------------------------------------------------
  const panels = names.map((name, n) => {
    const canvas = aria(make("canvas", { className: "picture" }), { role: "img" });
    const panel = { canvas, n, told: make("figcaption"), list: make("ul"), title: make("h4", { textContent: name }) };
    panel.element = make("figure", {}, panel.title, canvas, panel.told, panel.list);
    canvas.onclick = (event) => {
      const hit = under(n, event.offsetX / canvas.clientWidth, event.offsetY / canvas.clientHeight);
      pickOut(n, hit === null ? null : detectionsOf(n)[hit]);
    };
    canvas.onmousemove = (event) => {
      canvas.style.cursor = under(n, event.offsetX / canvas.clientWidth, event.offsetY / canvas.clientHeight) === null ? "" : "pointer";
    };
    return panel;
  });
  const stage = make("div", { className: "stage" }, ...panels.map((panel) => panel.element));
  const detectionsOf = (n) => set.found[n][view.scene].filter((d, i) => outcomes[n][view.scene].kinds[i]);
  // The smallest detection under a point, as its place among those that are shown.
  function under(n, x, y) {
    if (!set) return null;
    const inside = detectionsOf(n).map(({ box: [cx, cy, w, h] }, i) => [w * h, i, Math.abs(x - cx) <= w / 2 && Math.abs(y - cy) <= h / 2]);
    const hits = inside.filter(([, , is]) => is).sort((a, b) => a[0] - b[0]);
    return hits.length ? hits[0][1] : null;
  }
  function pickOut(n, detection) {
    const same = detection && view.chosen === names[n] && view.query === detection.query;
    go(!detection || same ? { chosen: "" } : { chosen: names[n], query: detection.query });
  }
  // For each detector the detection that looks: the chosen one, and what overlaps it most under the others.
  function looking() {
    const source = names.indexOf(view.chosen);
    const chosen = source < 0 ? null : detectionsOf(source).find((d) => d.query === view.query);
    return names.map((_, n) => {
      if (!chosen || n === source) return chosen || null;
      let best = null, most = IOU;
      for (const d of detectionsOf(n)) {
        const iou = overlap(d.box, chosen.box);
        if (iou >= most) [best, most] = [d, iou];
      }
      return best;
    });
  }
  const lookKey = () => [view.data, view.scene, view.block, view.head].join(" ");

  function side() {
    const narrow = el.clientWidth < 2 * PICTURE[0] + GAP + 16, across = narrow ? 1 : Math.min(names.length, Math.floor(el.clientWidth / (PICTURE[0] + GAP)));
    return Math.round(Math.max(PICTURE[0], Math.min(PICTURE[1], (el.clientWidth - 16 - GAP * (across - 1)) / across)));
  }
  function drawPanel(panel, looked) {
    const { canvas, n } = panel, scale = side() / Math.max(set.width, set.height), width = set.width * scale, height = set.height * scale;
    const context = sized(canvas, width, height), image = images.get(`${view.data} ${view.scene}`);
    const { kinds, object, missed } = outcomes[n][view.scene], found = set.found[n][view.scene], truth = set.truth[view.scene];
    if (image) context.drawImage(image, 0, 0, width, height);
    const look = looks.get(lookKey())?.[n];
    if (looked && look && look.weights.length) heat(context, look, looked.query, width, height);
    truth.forEach(({ box, label: k }) => outline(context, box, width, height, colour(k), 2, [2, 3]));
    // Names stand off the boxes, and off each other, where there is room.
    const taken = [...found.filter((_, i) => kinds[i]), ...truth].map(({ box: [cx, cy, w, h] }) => [(cx - w / 2) * width, (cy - h / 2) * height,
      (cx + w / 2) * width, (cy + h / 2) * height, 0.3]);
    found.forEach((d, i) => {
      if (kinds[i]) outline(context, d.box, width, height, colour(d.label), looked === d ? 4 : 2.2, []);
    });
    found.forEach((d, i) => { if (kinds[i]) tag(context, d.box, `${className(d.label)} ${d.score.toFixed(2)}`, width, height, colour(d.label), taken); });
    panel.title.style.maxWidth = panel.told.style.maxWidth = panel.list.style.maxWidth = `${width}px`;
    const numbers = { right: 0, wrong: 0, false: 0, missed: missed.filter((is) => is).length };
    kinds.forEach((kind) => { if (kind) numbers[kind] += 1; });
    const summary = Object.entries(numbers).filter(([, count]) => count).map(([kind, count]) => `${count} ${WORDS[kind]}`).join(", ");
    panel.told.textContent = lookText(looked, look) || summary || "no object here, and none found";
    canvas.setAttribute("aria-label", `${names[n]}, scene ${view.scene}: ${summary || "no detections and no objects"}`);
    drawList(panel, found, kinds, object, truth, missed, looked);
  }
  function lookText(looked, look) {
    if (!view.chosen) return "";
    if (!looked) return "no detection of the same object here";
    if (!look) return "asking where it looks …";
    if (look.why) return look.why;
    const top = look.weights.subarray(looked.query * look.count, (looked.query + 1) * look.count).reduce((a, b) => Math.max(a, b), 0);
    return `query ${looked.query} looks: decoder block ${look.block + 1} of ${look.blocks}, ${look.head < 0 ? "mean of heads" : `head ${look.head + 1}`}, `
      + `up to ${(100 * top).toFixed(1)} % a patch`;
  }
  function heat(context, look, query, width, height) {
    const [rows, columns] = look.grid, row = look.weights.subarray(query * look.count, (query + 1) * look.count);
    const top = row.reduce((a, b) => Math.max(a, b), 1e-12), rgb = new Uint8Array(3 * look.count);
    row.forEach((value, i) => rgb.set(options.heat[Math.round(255 * value / top)], 3 * i));
    context.globalAlpha = overlay.value / 100;
    context.drawImage(raster(columns, rows, rgb), 0, 0, width, height);
    context.globalAlpha = 1;
  }
  function outline(context, [cx, cy, w, h], width, height, color, thick, dash) {
    const place = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height];
    thick = Math.min(thick, Math.max(1, Math.min(place[2], place[3]) / 9));  // a small box is not drowned by its own line
    context.setLineDash([]);
    context.strokeStyle = "rgba(255, 255, 255, 0.75)";
    context.lineWidth = thick + Math.min(1.6, thick);
    context.strokeRect(...place);
    context.setLineDash(dash);
    context.strokeStyle = color;
    context.lineWidth = thick;
    context.strokeRect(...place);
    context.setLineDash([]);
  }
  // A name and score beside its box, inside the picture, and off the others where there is room.
  function tag(context, [cx, cy, w, h], text, width, height, color, taken) {
    context.font = "12px sans-serif";
    const wide = context.measureText(text).width + 8, high = 17, [x, y] = [(cx - w / 2) * width, (cy - h / 2) * height];
    const tops = [y - high - 2, y + h * height + 2, y, y + h * height - high], lefts = [x, x + w * width - wide];
    const tried = [...lefts.flatMap((left) => tops.map((top) => [left, top])),
      ...[y, y + h * height - high].flatMap((top) => [[x + w * width + 2, top], [x - wide - 2, top]])]
      .map(([left, top]) => [Math.max(0, Math.min(left, width - wide)), Math.max(0, Math.min(top, height - high))]);
    // What it would hide, other names above all; the first places are the likeliest to be looked at.
    const costs = tried.map(([left, top], i) => taken.reduce((sum, [l, t, r, b, weight]) => sum + weight
      * Math.max(0, Math.min(left + wide, r) - Math.max(left, l)) * Math.max(0, Math.min(top + high, b) - Math.max(top, t)), 0.02 * i * wide * high));
    const [left, top] = tried[costs.indexOf(Math.min(...costs))];
    taken.push([left, top, left + wide, top + high, 3]);
    context.fillStyle = color;
    context.fillRect(left, top, wide, high);
    context.fillStyle = ink(color);
    context.fillText(text, left + 4, top + 12.5);
  }
  // The same in words, to be read and pressed without a mouse.
  function drawList(panel, found, kinds, object, truth, missed, looked) {
    const focused = panel.list.contains(document.activeElement) ? document.activeElement.dataset.query : null;
    const dot = (k) => { const i = make("i"); i.style.background = colour(k); return i; };
    const lines = found.flatMap((d, i) => {
      if (!kinds[i]) return [];
      const note = kinds[i] === "wrong" ? `≠ is ${className(truth[object[i]].label)}` : kinds[i] === "false" ? "+ false" : "✓";
      const button = make("button", { className: kinds[i], title: "show where it looks", onclick: () => pickOut(panel.n, d) },
        dot(d.label), `${className(d.label)} ${d.score.toFixed(2)} `, make("em", { textContent: note }));
      button.dataset.query = d.query;
      return [make("li", {}, aria(button, { "aria-pressed": String(looked === d) }))];
    });
    truth.forEach((o, t) => { if (missed[t]) lines.push(make("li", { className: "missed" }, dot(o.label), `− missed: ${className(o.label)}`)); });
    panel.list.replaceChildren(...lines);
    if (focused !== null) panel.list.querySelector(`[data-query="${focused}"]`)?.focus();
  }

  // -- where a detection looks -----------------------------------------------------------------------------------------
  const block = make("select", { className: "block", onchange: () => go({ block: Number(block.value) }) });
  const head = make("select", { className: "head", onchange: () => go({ head: Number(head.value) }) });
  const overlay = aria(make("input", { type: "range", min: 0, max: 100, value: 60, oninput: () => draw() }), { "aria-label": "strength of the overlay" });
  fill(block, Array.from({ length: options.blocks }, (_, i) => [-1 - i, i ? `${i} before the last` : "last"]), view.block);
  fill(head, [[-1, "mean"], ...Array.from({ length: options.heads }, (_, i) => [i, String(i + 1)])], view.head);
  const hint = make("span", { className: "quiet", textContent: "Dotted: true boxes. Click a detection to see where its query looks." });
  const looksBar = make("div", { className: "bar looks" }, labelled("decoder block", block), labelled("head", head), labelled("overlay", overlay),
    make("button", { textContent: "hide attention", onclick: () => go({ chosen: "" }) }));

  // -- drawing all -----------------------------------------------------------------------------------------------------
  function draw() {
    if (!set) return;
    const kinds = [["", "all scenes"], ["missed", "missed objects"], ["false", "false detections"], ["wrong", "wrong class"], ["right", "all right"]];
    fill(outcome, kinds.map(([key, text]) => [key, `${text} (${number(filtered(key, view.label).length)})`]), view.outcome);
    fill(label, [[-1, "any class"], ...set.classes.map((name, k) => [k, name])], view.label);
    fill(of, [["", "any detector"], ...names.map((name) => [name, name])], view.of);
    fill(data, options.data.map((name) => [name, name]), view.data);
    slider.value = view.threshold;
    if (document.activeElement !== exact || exact.getAttribute("aria-invalid") !== "true") exact.value = view.threshold.toFixed(2);
    place.value = view.scene;
    for (const input of [exact, place]) input.removeAttribute("aria-invalid");
    block.value = String(view.block);
    head.value = String(view.head);
    drawTable();
    drawStrip();
    if (!images.has(`${view.data} ${view.scene}`)) fetchImages();
    if (view.chosen && !looks.has(lookKey())) ask({ do: "look", data: view.data, scene: view.scene, block: view.block, head: view.head });
    const looked = looking();
    looksBar.hidden = !view.chosen;
    hint.hidden = Boolean(view.chosen);
    panels.forEach((panel) => { panel.title.style.minHeight = ""; drawPanel(panel, looked[panel.n]); });
    const highest = `${Math.max(...panels.map((panel) => panel.title.offsetHeight))}px`;
    panels.forEach((panel) => { panel.title.style.minHeight = highest; });
    Object.assign(el.dataset, { scene: view.scene, list: shown.length, threshold: view.threshold,
      boxes: names.map((_, n) => detectionsOf(n).length).join(" "),
      looks: panels.filter((panel) => looked[panel.n] && looks.get(lookKey())?.[panel.n].weights.length).length });
  }
  // The scene, and a few that are likely to be next.
  function fetchImages() {
    const at = shown.indexOf(view.scene), ahead = set.width * set.height < 40000 ? 8 : 1;
    const rows = [view.scene, ...(at < 0 ? [] : shown.slice(at + 1, at + 1 + ahead))].filter((i) => !images.has(`${view.data} ${i}`));
    ask({ do: "images", data: view.data, rows });
  }

  // -- answers from the kernel -----------------------------------------------------------------------------------------
  function receive(content, buffers) {
    if (content.kind === "done") {
      asked.delete(content.id);
      wait();
    } else if (content.kind === "scenes" && content.data === view.data) {
      busy = "";
      const truth = unpack(buffers.slice(0, 3)), found = names.map((_, n) => unpack(buffers.slice(3 + 5 * n, 8 + 5 * n)));
      set = { ...content, truth, found, pairs: found.map((scenes) => scenes.map((own, i) => pairsOf(own, truth[i]))) };
      count();
      choose();
      draw();
      tell();
    } else if (!set || content.data !== view.data) {
      return;  // of scenes that are no longer shown
    } else if (content.kind === "images") {
      content.rows.forEach((row, i) => keep(images, `${content.data} ${row}`, raster(set.width, set.height, new Uint8Array(bytes(buffers[i])))));
      draw();
    } else if (content.kind === "thumbs") {
      const rgb = new Uint8Array(bytes(buffers[0])), size = 3 * options.thumb ** 2;
      content.rows.forEach((row, i) => keep(thumbs, `${content.data} ${row}`, raster(options.thumb, options.thumb, rgb.subarray(i * size, (i + 1) * size))));
      drawStrip();
    } else if (content.kind === "look") {
      keep(looks, [content.data, content.scene, content.block, content.head].join(" "), content.looks.map((look, n) => ({ ...look,
        count: look.grid[0] * look.grid[1], weights: new Float32Array(bytes(buffers[n])) })));
      draw();
    }
  }
  const changed = () => {
    const told = model.get("view");
    if (JSON.stringify(told) !== JSON.stringify(view) && Object.keys(told).some((name) => told[name] !== view[name])) go(told, true);
  };
  const save = make("button", { className: "save-figure", textContent: "Save figure", title: "this scene as svg, pdf and png",
    onclick: () => ask({ do: "save", view: { ...view } }) });
  const saved = aria(make("span", { className: "saved" }), { "aria-live": "polite" });
  const showSaved = () => { saved.textContent = model.get("saved"); };
  const listeners = { "msg:custom": receive, "change:view": changed, "change:error": () => problem(""), "change:saved": showSaved };
  for (const [event, listener] of Object.entries(listeners)) model.on(event, listener);

  el.classList.add("dfkd-browse");
  aria(el, { role: "group", "aria-label": "detections, scene by scene" });
  // A plain key is the control's own: JupyterLab would move a cell with the arrow that moves a slider.
  const keys = (event) => { if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation(); };
  el.addEventListener("keydown", keys);
  looksBar.hidden = true;
  el.append(
    make("div", { className: "bar" }, ...(options.data.length > 1 ? [labelled("scenes", data)] : []), labelled("show", outcome),
      ...(names.length > 1 ? [labelled("of", of)] : []), labelled("class", label), labelled("score from", slider, exact)),
    make("div", { className: "scroll" }, table), error,
    make("div", { className: "bar" }, before, labelled("scene", place), position, after, busyText), strip, stage,
    make("div", { className: "below" }, hint, looksBar), make("div", { className: "bar" }, save, saved));
  showSaved();
  showError();
  let wide = 0;
  const resized = new ResizeObserver(() => { if (Math.abs(el.clientWidth - wide) > 2) { wide = el.clientWidth; draw(); } });
  resized.observe(el);
  busy = "the detectors look at these scenes …";
  ask({ do: "ready" });
  return () => {
    clearTimeout(timer);
    resized.disconnect();
    el.removeEventListener("keydown", keys);
    for (const [event, listener] of Object.entries(listeners)) model.off(event, listener);
  };
}

export default { render };
