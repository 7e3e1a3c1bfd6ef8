// The front end of AblationLab. The kernel says what `Jobs` knows, this draws it and asks again; the training itself runs
// in a process of its own. Whatever comes from data is set as text, never as markup.

const FAST = 1000, SLOW = 5000;  // milliseconds between two looks: while something runs or waits, and else
const SILENT = 12000;            // after which the kernel counts as busy or gone
const COLORS = 8;                // --s0 .. --s7 of the style sheet; --s0 is what runs
const HEIGHT = 118, LEFT = 38, RIGHT = 8, TOP = 6, BOTTOM = 18;  // of a chart
const NO_LOSS = ["epoch", "lr", "seconds", "images_per_second", "test_accuracy"];
const TITLES = { test_accuracy: "test accuracy (%)", loss: "loss, weighted", kd: "distillation (KD)", ce: "cross entropy (CE)",
  patch: "patch probe", hard: "hard label", soft: "soft label", early: "early features" };

// -- helpers -------------------------------------------------------------------------------------------------------------
const make = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children);
  return element;
};
const draw = (tag, attributes = {}, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const aria = (element, values) => {
  for (const [name, value] of Object.entries(values)) {
    if (value === null) element.removeAttribute(name); else element.setAttribute(name, value);
  }
  return element;
};
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const short = (value) => !isNumber(value) ? "–" : value === 0 ? "0" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
  : value.toPrecision(3);
const time = (seconds) => seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min`
  : `${(seconds / 3600).toFixed(1)} h`;
const last = (list) => list[list.length - 1];

// Round numbers in [low, high], some `count` of them and at least two, and a way to write them.
function ticks(low, high, count = 3) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const steps = [10, 5, 2, 1, 0.5, 0.2].map((m) => m * power);
  const values = (step) => {
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
    return found;
  };
  const step = steps.slice(steps.findLastIndex((s) => s >= rough)).find((s) => values(s).length > 1);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return { values: values(step), text: (value) => value.toFixed(Math.min(6, digits)) };
}

// -- charts --------------------------------------------------------------------------------------------------------------
// A series: { name, color, history: rows of finished epochs, progress: of the epoch that runs, or null }.
const valueOf = (row, key) => key === "test_accuracy" && isNumber(row[key]) ? 100 * row[key] : row[key];

function keysOf(series) {
  const found = new Set();
  for (const { history, progress } of series) {
    for (const row of [...history, progress ? progress.losses : {}]) {
      for (const key of Object.keys(row)) if (isNumber(row[key]) && !NO_LOSS.includes(key)) found.add(key);
    }
  }
  const order = Object.keys(TITLES), place = (key) => order.includes(key) ? order.indexOf(key) : order.length;
  return ["test_accuracy", ...[...found].sort((a, b) => place(a) - place(b) || a.localeCompare(b))];
}

// Points of a series: one a finished epoch, and last the epoch in progress, where it stands.
function pointsOf({ history, progress }, key) {
  const points = history.filter((row) => isNumber(row[key])).map((row) => [row.epoch, valueOf(row, key)]);
  const now = progress && progress.losses ? progress.losses[key] : null;
  if (!isNumber(now) || !progress.steps || history.length >= progress.epochs) return { points, moving: null };
  return { points, moving: [progress.epoch - 1 + progress.step / progress.steps, now] };
}

function chart(key, series, width) {
  const drawn = series.map((one) => ({ ...one, ...pointsOf(one, key) }));
  const every = drawn.flatMap(({ points, moving }) => moving ? [...points, moving] : points);
  const epochs = Math.max(1, ...series.map(({ history, progress }) => Math.max(history.length, progress ? progress.epochs : 0)));
  let low = Math.min(...every.map((p) => p[1])), high = Math.max(...every.map((p) => p[1]));
  if (!every.length) [low, high] = [0, 1];
  if (low > 0 && low < 0.4 * high && key !== "test_accuracy") low = 0;
  const room = high - low || Math.abs(high) * 0.1 || 1;
  [low, high] = [low === 0 ? 0 : low - 0.08 * room, high + 0.08 * room];
  if (key === "test_accuracy") high = Math.min(high, 100.5);
  const x = (epoch) => LEFT + (width - LEFT - RIGHT) * epoch / epochs;
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low);
  const picture = draw("svg", { width, height: HEIGHT, role: "img" });
  const scale = ticks(low, high);
  for (const value of scale.values) {
    picture.append(draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      draw("text", { x: LEFT - 5, y: y(value) + 3.5, "text-anchor": "end" }, every.length ? scale.text(value) : ""));
  }
  for (const value of ticks(0, epochs, 4).values.filter((v) => Number.isInteger(v))) {
    picture.append(draw("text", { x: x(value), y: HEIGHT - 4, "text-anchor": "middle" }, String(value)));
  }
  for (const { name, color, points, moving } of drawn) {
    const style = `stroke: var(--s${color % COLORS}); --own: var(--s${color % COLORS})`;
    const dashes = color >= COLORS ? { "stroke-dasharray": "6 2" } : {};
    picture.append(draw("polyline", { class: "line", style, ...dashes, points: points.map((p) => `${x(p[0])},${y(p[1])}`).join(" ") }));
    if (moving && points.length) {
      const from = last(points);
      picture.append(draw("line", { class: "moving", style, x1: x(from[0]), y1: y(from[1]), x2: x(moving[0]), y2: y(moving[1]) }));
    }
    for (const point of points) {
      if (points.length > 40 && point !== last(points)) continue;
      picture.append(draw("circle", { class: "point", style, cx: x(point[0]), cy: y(point[1]), r: 2.5 },
        draw("title", {}, `${name}\nepoch ${point[0]}: ${short(point[1])}`)));
    }
    if (moving) picture.append(draw("circle", { class: "point now", style, cx: x(moving[0]), cy: y(moving[1]), r: 4 }));
  }
  const title = TITLES[key] || key, latest = drawn.length ? drawn[0].moving || last(drawn[0].points) : null;
  const value = latest ? key === "test_accuracy" ? latest[1].toFixed(1) : short(latest[1]) : "";
  picture.setAttribute("aria-label", drawn.map(({ name, points, moving }) => {
    const at = moving || last(points);
    return at ? `${title} of ${name}: ${short(at[1])} at epoch ${Number(at[0].toFixed(1))} of ${epochs}` : `${title} of ${name}: none yet`;
  }).join("; "));
  const figure = make("figure", {}, make("figcaption", {}, title, make("b", { textContent: drawn.length === 1 ? value : "" })), picture);
  figure.dataset.key = key;
  return figure;
}

function render({ model, el }) {
  const { controls, start, notebook } = model.get("options");
  let state = null, serial = 0, asked = 0, waiting = false, timer = null;

  // -- asking the kernel -----------------------------------------------------------------------------------------------
  function send(content) {
    if (!waiting) asked = performance.now();
    waiting = true;
    model.send({ ...content, id: ++serial, seen: state ? state.version : "" });
  }
  function act(content) {
    status.textContent = "asking the kernel…";
    send(content);
  }
  const alive = () => state !== null && state.jobs.some((job) => job.state === "running" || job.state === "queued");
  function poll() {
    const silent = waiting ? performance.now() - asked : 0;
    foot.textContent = silent > SILENT ? "No answer from the kernel: it is busy, or was restarted (then run this cell again). " +
      "What runs goes on in its own process." : "";
    if (!waiting || silent > 30000) { waiting = false; send({ do: "poll" }); }
    schedule();
  }
  function schedule() {
    clearTimeout(timer);
    const near = el.isConnected && document.visibilityState !== "hidden";
    timer = setTimeout(poll, near && alive() ? FAST : SLOW);
  }

  // -- controls --------------------------------------------------------------------------------------------------------
  const values = { ...model.get("values") };
  const rows = new Map();
  const keep = () => { model.set("values", { ...values }); model.save_changes(); };
  function changed(name, value, committed) {
    values[name] = value;
    markChanges();
    if (committed) keep();
  }
  function markChanges() {
    let count = 0;
    for (const { control, element } of rows.values()) {
      element.hidden = control.only.length > 0 && !control.only.includes(values.source);
      const differs = values[control.name] !== start[control.name];
      element.classList.toggle("changed", differs);
      count += differs && !element.hidden;
    }
    reset.disabled = count === 0;
    note.textContent = count === 0 ? "the notebook's own values" : `${count} ${count === 1 ? "value differs" : "values differ"} from the notebook's`;
  }
  // A slider's place for a value; one by factors runs over 0..200.
  const lowest = (control) => Math.max(control.low, control.log ? control.high / 2000 : control.low);
  function toPlace(control, value) {
    if (!control.log) return value;
    return 200 * Math.log(Math.max(value, lowest(control)) / lowest(control)) / Math.log(control.high / lowest(control));
  }
  function fromPlace(control, place) {
    if (!control.log) return Number(place.toPrecision(6));
    const value = Number((lowest(control) * (control.high / lowest(control)) ** (place / 200)).toPrecision(2));
    return control.kind === "whole" ? Math.round(value) : value;
  }
  function numeric(control, id) {
    const slider = make("input", { type: "range", tabIndex: 0, min: control.log ? 0 : control.low, max: control.log ? 200 : control.high,
      step: control.log ? 1 : control.step });
    const box = make("input", { type: "number", id, step: "any" });
    aria(slider, { "aria-label": `${control.label}, slider` });
    slider.oninput = () => { box.value = fromPlace(control, Number(slider.value)); changed(control.name, Number(box.value), false); };
    slider.onchange = keep;
    const typed = (committed) => {
      const value = box.value.trim() === "" ? null : Number(box.value);
      if (isNumber(value)) slider.value = toPlace(control, value);
      changed(control.name, value, committed);
    };
    box.oninput = () => typed(false);
    box.onchange = () => typed(true);
    return { inputs: [slider, box], show: (value) => { box.value = value ?? ""; if (isNumber(value)) slider.value = toPlace(control, value); } };
  }
  function chosen(control, id) {
    const select = make("select", { id, onchange: () => changed(control.name, select.value, true) },
      ...Object.entries(control.choices).map(([value, text]) => make("option", { value, textContent: text })));
    return { inputs: [select], show: (value) => { select.value = value; } };
  }
  function written(control, id) {
    const input = make("input", { type: "text", id, spellcheck: false });
    input.oninput = () => changed(control.name, input.value, false);
    input.onchange = () => changed(control.name, input.value, true);
    if (control.name === "schedules") input.placeholder = "none; e.g. kd: 1@0 0@1";
    return { inputs: [input], show: (value) => { input.value = value; } };
  }
  const unique = Math.random().toString(36).slice(2);
  function controlRow(control) {
    const id = `dfkd-${control.name}-${unique}`;
    const made = (control.kind === "choice" ? chosen : control.kind === "text" ? written : numeric)(control, id);
    const label = make("label", { htmlFor: id, textContent: control.label, title: control.help });
    const element = make("div", { className: `control ${control.kind}`, title: control.help }, label, ...made.inputs);
    element.dataset.name = control.name;
    rows.set(control.name, { control, element, ...made });
    return element;
  }
  function showValues() {
    Object.assign(values, model.get("values"));
    for (const [name, { show }] of rows) show(values[name]);
    markChanges();
  }
  const reset = make("button", { className: "reset", textContent: "Reset", title: "back to the notebook's own values",
    onclick: () => act({ do: "reset" }) });
  const note = make("span", { className: "quiet" });
  const press = (what, text, title) => make("button", { className: what, textContent: text, title,
    onclick: () => act({ do: what, values: { ...values } }) });
  const groups = [...new Set(controls.map((control) => control.group))].map((group) => make("fieldset", {},
    make("legend", { textContent: group }), ...controls.filter((control) => control.group === group).map(controlRow)));
  const buttons = make("div", { className: "bar" }, press("run", "▶ Run", "before all others that wait"),
    press("queue", "Queue", "after all others that wait"), reset, note);

  // -- what the last button did ----------------------------------------------------------------------------------------
  const status = aria(make("div", { className: "status" }), { role: "status", "aria-live": "polite" });
  const error = aria(make("div", { className: "error" }), { role: "alert" });
  function showSaid() {
    status.textContent = model.get("said");
    error.textContent = model.get("error");
    for (const [name, { inputs }] of rows) {
      for (const input of inputs) aria(input, { "aria-invalid": model.get("field") === name ? "true" : null });
    }
  }

  // -- what runs -------------------------------------------------------------------------------------------------------
  const running = make("div", { className: "running" }), runs = make("b"), where = make("span", { className: "quiet" });
  const bar = make("progress", { max: 1 }), stop = make("button", { className: "stop", textContent: "■ Stop",
    title: "end it; its finished epochs are kept, and the same settings go on from there" });
  aria(bar, { "aria-label": "share of all epochs done" });
  running.append(make("div", { className: "bar" }, runs, where, stop), bar);
  function showRunning() {
    const job = state.jobs.find((one) => one.state === "running");
    running.hidden = !job;
    if (!job) { delete el.dataset.live; return; }
    const p = job.progress;
    runs.textContent = `${job.name}, seed ${job.seed}`;
    stop.onclick = () => act({ do: "stop", job: job.id });
    if (!p) {
      where.textContent = `starting · ${time(job.seconds)}`;
      bar.removeAttribute("value");
      el.dataset.live = "starting";
      return;
    }
    const done = p.history.length >= p.epochs;
    const left = done ? "measuring" : isNumber(p.left) ? `${time(p.left)} left` : "";
    where.textContent = [p.label, `epoch ${p.epoch} of ${p.epochs}`, left].filter(Boolean).join(" · ");
    bar.value = done ? 1 : (p.history.length + (p.steps ? p.step / p.steps : 0)) / p.epochs;
    el.dataset.live = `${p.epoch}:${p.step}`;
  }

  // -- charts of what runs, and of what is compared --------------------------------------------------------------------
  const charts = make("div", { className: "charts" }), legend = make("div", { className: "legend" });
  const verdict = aria(make("div", { className: "verdict" }), { "aria-live": "polite" });
  const alone = make("button", { className: "alone", textContent: "Clear comparison", onclick: () => act({ do: "alone" }) });
  const swatch = (color) => {
    const element = make("i");
    element.style.background = `var(--s${color % COLORS})`;
    return element;
  };
  const colorOf = (id) => 1 + state.overlaid.indexOf(id);  // 0 for what is not overlaid
  function series() {
    const job = state.jobs.find((one) => one.state === "running"), found = [];
    if (job) found.push({ name: `${job.name}, seed ${job.seed}`, color: 0, history: (job.progress || { history: [] }).history, progress: job.progress });
    if (state.overlaid.length || !job) for (const curve of state.curves) found.push({ ...curve, color: colorOf(curve.id), progress: null });
    return found;
  }
  function showCharts() {
    const shown = series(), width = Math.max(150, Math.floor(el.clientWidth) - 10);
    const across = Math.max(1, Math.min(keysOf(shown).length, Math.floor(width / 190)));
    const each = Math.floor((width - 12 * (across - 1)) / across);
    charts.hidden = !shown.length;
    charts.replaceChildren(...(shown.length ? keysOf(shown).map((key) => chart(key, shown, Math.min(each, 330))) : []));
    legend.hidden = !shown.length;
    legend.replaceChildren(...shown.map(({ name, color }, i) => make("span", {}, swatch(color), i === 0 && color === 0 && alive() && !running.hidden
      ? `${name} (running)` : name)), make("span", { className: "quiet", textContent: "by epoch" }));
    verdict.textContent = state.compared;
    verdict.hidden = !state.compared;
    alone.hidden = !state.overlaid.length;
  }

  // -- what waits, and what did not finish -----------------------------------------------------------------------------
  const waits = make("ul", { className: "jobs" });
  function jobLine(job) {
    const title = `${job.name}, seed ${job.seed}`, ended = job.state === "failed" || job.state === "stopped";
    const button = (text, what, label) => aria(make("button", { className: what, textContent: text, title: label,
      onclick: () => act({ do: what, job: job.id }) }), { "aria-label": `${label}: ${title}` });
    const p = job.progress, kept = p && p.history.length ? ` after ${p.history.length} of ${p.epochs} epochs` : "";
    const line = make("li", { className: job.state }, make("em", { textContent: job.state === "queued" ? "waits" : job.state }),
      make("span", { textContent: title + (ended ? kept : "") }),
      ...(job.state === "stopped" ? [button("Go on", "again", "go on from its finished epochs")] : []),
      ...(job.state === "failed" ? [button("Try again", "again", "run it again")] : []),
      ...(ended ? [button("Clear", "clear", "clear this line")] : []),
      ...(job.state === "queued" ? [button("×", "stop", "take out of the queue")] : []),
      ...(job.state === "running" ? [button("■ Stop", "stop", "stop")] : []));
    if (job.error) line.append(make("pre", { textContent: job.error }));
    return line;
  }
  function showJobs() {
    const first = state.jobs.find((job) => job.state === "running");
    const lost = state.lost.map((text) => make("li", { className: "failed" }, make("em", { textContent: "failed" }), make("pre", { textContent: text })));
    waits.replaceChildren(...state.jobs.filter((job) => job !== first).map(jobLine), ...lost);
    waits.hidden = !waits.children.length;
  }

  // -- the table of finished runs --------------------------------------------------------------------------------------
  const head = ["", "run", "seed", "accuracy (%), 95 %", "", "agreement", "last loss", "time", "", ""];
  const body = make("tbody"), all = aria(make("input", { type: "checkbox" }), { "aria-label": "check all rows" });
  const header = make("tr", {}, ...head.map((text, i) => aria(make("th", { className: `c${i}`, textContent: text }), { scope: "col" })));
  header.firstChild.append(all);
  header.children[3].title = "Wilson's interval of the test sample; it says nothing of other seeds";
  header.children[5].title = "cosine of teacher's and student's attention probes, mean over classes";
  header.children[6].title = "mean of the weighted loss over the last epoch";
  const table = make("table", {}, make("thead", {}, header), body), scroll = make("div", { className: "scroll" }, table);
  const empty = make("p", { className: "quiet", textContent: "Nothing has finished yet: press Run." });
  all.onchange = () => check(all.checked ? state.rows.map((row) => row.id) : []);
  function check(ids) {
    model.set("checked", ids);
    model.save_changes();
    showChecks();
  }
  function showChecks() {
    const ids = model.get("checked");
    const there = state ? state.rows.filter((row) => ids.includes(row.id)).length : 0;
    for (const line of body.children) line.querySelector("input").checked = ids.includes(line.dataset.id);
    all.checked = there > 0 && there === state.rows.length;
    all.indeterminate = there > 0 && !all.checked;
    compare.disabled = there === 0;
    saveFigure.disabled = !state || !state.rows.length;
    saveFigure.textContent = there ? `Save figure of ${there}` : "Save figure";
    saveParameters.title = there ? "of the checked rows, which may differ in the seed alone" : "of the controls above";
  }
  function whisker(row, low, high) {
    const x = (value) => 4 + 82 * (value - low) / (high - low || 1);
    return draw("svg", { width: 90, height: 14, "aria-hidden": "true" },
      draw("line", { class: "whisker", x1: x(row.low), x2: x(row.high), y1: 7, y2: 7 }),
      draw("circle", { class: "dot", cx: x(row.accuracy), cy: 7, r: 3 }));
  }
  function tableLine(row, low, high) {
    const title = `${row.name}, seed ${row.seed}`;
    const tick = aria(make("input", { type: "checkbox" }), { "aria-label": `check ${title}` });
    tick.onchange = () => check([...model.get("checked").filter((id) => id !== row.id), ...(tick.checked ? [row.id] : [])]);
    const use = aria(make("button", { className: "use", textContent: "Use these", title: "put its settings into the controls",
      onclick: () => act({ do: "use", row: row.id }) }), { "aria-label": `use the settings of ${title}` });
    const clear = aria(make("button", { className: "clear", textContent: "×", title: "take it off this table; what was trained is kept",
      onclick: () => act({ do: "clear", job: row.job }) }), { "aria-label": `take off the table: ${title}` });
    const color = state.overlaid.includes(row.id) ? [swatch(colorOf(row.id))] : [];
    const agreement = isNumber(row.agreement) ? `${row.agreement.toFixed(3)}${isNumber(row.half) ? ` ± ${row.half.toFixed(3)}` : ""}` : "–";
    const cells = [tick, make("span", {}, ...color, row.name, ...(row.differs ? [make("small", { textContent: row.differs })] : [])),
      String(row.seed), make("span", {}, make("b", { textContent: row.accuracy.toFixed(2) }),
        make("small", { textContent: `${row.low.toFixed(2)} – ${row.high.toFixed(2)}` })),
      whisker(row, low, high), agreement, short(row.loss), isNumber(row.seconds) ? time(row.seconds) : "–", row.how,
      make("span", {}, use, ...(row.job ? [clear] : []))];
    const line = make("tr", {}, ...cells.map((cell, i) => make("td", { className: `c${i}` }, cell)));
    line.dataset.id = row.id;
    line.dataset.accuracy = row.accuracy;
    return line;
  }
  function showTable() {
    const low = Math.min(...state.rows.map((row) => row.low)), high = Math.max(...state.rows.map((row) => row.high));
    body.replaceChildren(...state.rows.map((row) => tableLine(row, low, high)));
    empty.hidden = state.rows.length > 0;
    scroll.hidden = !state.rows.length;
    tools.hidden = false;
    showChecks();
  }
  const compare = make("button", { className: "compare", textContent: "Compare", title: "overlay the curves of the checked rows, and tell their difference",
    onclick: () => act({ do: "compare" }) });
  const saveFigure = make("button", { className: "save-figure", title: "as svg, pdf and png: the checked rows, or all", onclick: () => act({ do: "figure" }) });
  const saveParameters = make("button", { className: "save-parameters", textContent: "Save parameters",
    onclick: () => act({ do: "parameters", values: { ...values } }) });
  const tools = make("div", { className: "bar" }, compare, alone, saveFigure, ...(notebook ? [saveParameters] : []));

  // -- answers from the kernel -----------------------------------------------------------------------------------------
  // Only what has changed is built anew: a button that is being pressed, or has the focus, stays where it is.
  const drawn = {};
  const anew = (part, content, show) => {
    const text = JSON.stringify(content);
    if (drawn[part] === text) return;
    drawn[part] = text;
    show();
  };
  function receive(content) {
    if (content.kind !== "state" && content.kind !== "same") return;
    waiting = false;
    foot.textContent = "";
    showSaid();
    if (content.kind === "state") {
      state = content;
      const first = state.jobs.find((job) => job.state === "running");
      showRunning();
      anew("jobs", [state.jobs.filter((job) => job !== first), state.lost], showJobs);
      anew("rows", [state.rows, state.overlaid], showTable);
      anew("charts", [series(), state.overlaid, state.compared], showCharts);
      el.dataset.version = state.version;
    }
    schedule();
  }
  const foot = make("div", { className: "quiet" });
  const listeners = { "msg:custom": receive, "change:values": showValues, "change:checked": () => state && showChecks(),
    "change:said change:error change:field": showSaid };
  for (const [events, listener] of Object.entries(listeners)) for (const event of events.split(" ")) model.on(event, listener);

  el.classList.add("dfkd-lab");
  aria(el, { role: "group", "aria-label": "ablation: set, run and compare students" });
  // A plain key is the control's own: JupyterLab would move a cell with the arrow that moves a slider.
  const keys = (event) => { if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation(); };
  el.addEventListener("keydown", keys);
  running.hidden = charts.hidden = legend.hidden = verdict.hidden = alone.hidden = waits.hidden = scroll.hidden = true;
  el.append(make("div", { className: "settings" }, ...groups), buttons, status, error, running, waits, legend, charts, verdict,
    tools, empty, scroll, foot);
  showValues();
  showSaid();
  const resized = new ResizeObserver(() => { if (state) showCharts(); });
  resized.observe(el);
  send({ do: "ready" });
  schedule();
  return () => {
    clearTimeout(timer);
    resized.disconnect();
    el.removeEventListener("keydown", keys);
    for (const [events, listener] of Object.entries(listeners)) for (const event of events.split(" ")) model.off(event, listener);
  };
}

export default { render };
