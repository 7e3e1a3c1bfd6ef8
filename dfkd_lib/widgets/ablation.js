// The front end of AblationLab. The kernel sends what `Jobs` knows, this draws it and asks again; the training itself runs
// in a process of its own.

const FAST = 1000, SLOW = 5000;  // milliseconds between two questions: while something runs or waits, and else
const SILENT = 12000;            // after which the kernel counts as busy or gone
const COLORS = 8;                // --s0 .. --s7 of the style sheet; --s0 is what runs
const HEIGHT = 118, LEFT = 38, RIGHT = 8, TOP = 6, BOTTOM = 18;  // of a chart
const NO_LOSS = ["epoch", "lr", "seconds", "images_per_second", "test_accuracy"];
const TITLES = { test_accuracy: "test accuracy (%)", loss: "loss, weighted", kd: "distillation (KD)", ce: "cross entropy (CE)",
  patch: "patch probe", hard: "hard label", soft: "soft label", early: "early features" };
const COLUMNS = [[""], ["run"], ["seed"], ["accuracy (%), 95 %", "Wilson's interval of the test sample, not of other seeds"], [""],
  ["agreement", "cosine of teacher's and student's attention probes, mean over classes"],
  ["last loss", "mean of the weighted loss over the last epoch"], ["time"], [""], [""]];

const quiet = (textContent = "") => make("span", { className: "quiet", textContent });
const short = (value) => !isNumber(value) ? "–" : value === 0 ? "0" : Math.abs(value) >= 1000 ? grouped(Math.round(value)) : value.toPrecision(3);
const time = (seconds) => seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min`
  : `${(seconds / 3600).toFixed(1)} h`;
const titleOf = ({ name, seed }) => `${name}, seed ${seed}`;

// Two to four round numbers in [low, high], and a way to write them.
function ticks(low, high) {
  const power = 10 ** Math.floor(Math.log10(high - low)), fits = (step) => Math.floor(high / step + 1e-9) - Math.ceil(low / step - 1e-9) + 1;
  const step = [5, 2, 1, 0.5, 0.2, 0.1].map((m) => m * power).find((s) => fits(s) > 2) ?? power / 20;
  const values = Array.from({ length: fits(step) }, (_, i) => (Math.ceil(low / step - 1e-9) + i) * step);
  return { values, text: (value) => value.toFixed(Math.min(6, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)))) };
}

// -- charts of series { name, color, history: rows of finished epochs, progress: of the epoch that runs, or null, seeds: how
// many a mean is over (of others undefined), thin: whether it is one of them } --------------------------------------------
// Means by epoch of what all these histories have.
function meanOf(histories) {
  const mean = (key, i) => histories.reduce((sum, rows) => sum + rows[i][key], 0) / histories.length;
  return histories[0].slice(0, Math.min(...histories.map((rows) => rows.length))).map((row, i) => Object.fromEntries(Object.keys(row)
    .filter((key) => histories.every((rows) => isNumber(rows[i][key]))).map((key) => [key, mean(key, i)])));
}
function keysOf(series) {
  const rows = series.flatMap(({ history, progress }) => [...history, progress?.losses ?? {}]), order = Object.keys(TITLES);
  const found = new Set(rows.flatMap((row) => Object.keys(row).filter((key) => isNumber(row[key]) && !NO_LOSS.includes(key))));
  const place = (key) => order.indexOf(key) + 1 || order.length + 1;
  return ["test_accuracy", ...[...found].sort((a, b) => place(a) - place(b) || a.localeCompare(b))];
}
// Points of a series: one a finished epoch, and the epoch in progress, where it stands.
function pointsOf({ history, progress }, key) {
  const scale = key === "test_accuracy" ? 100 : 1, now = progress?.losses?.[key];
  const points = history.filter((row) => isNumber(row[key])).map((row) => [row.epoch, scale * row[key]]);
  const runs = isNumber(now) && progress.steps && history.length < progress.epochs;
  return { points, moving: runs ? [progress.epoch - 1 + progress.step / progress.steps, now] : null };
}
// The range of values that a chart shows: from 0 where the least is small, with room at both ends.
function rangeOf(values, accuracy) {
  let low = Math.min(...values), high = Math.max(...values);
  if (!values.length) [low, high] = [0, 1];
  if (high - low < 1e-9 * Math.abs(high)) low = high;  // a mean of equal values differs from them by rounding
  if (low > 0 && low < 0.4 * high && !accuracy) low = 0;
  const room = 0.08 * (high - low || Math.abs(high) * 0.1 || 1);
  return [low === 0 ? 0 : low - room, accuracy ? Math.min(high + room, 100.5) : high + room];
}
function chart(key, series, width) {
  const drawn = series.map((one) => ({ ...one, ...pointsOf(one, key) }));
  const every = drawn.flatMap(({ points, moving }) => (moving ? [...points, moving] : points).map((p) => p[1]));
  const epochs = Math.max(1, ...series.map(({ history, progress }) => Math.max(history.length, progress?.epochs ?? 0)));
  const [low, high] = rangeOf(every, key === "test_accuracy"), scale = ticks(low, high);
  const x = (epoch) => LEFT + (width - LEFT - RIGHT) * epoch / epochs;
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low);
  const picture = svg("svg", { width, height: HEIGHT, role: "img" });
  for (const value of scale.values) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 5, y: y(value) + 3.5, "text-anchor": "end" }, every.length ? scale.text(value) : ""));
  }
  for (const value of ticks(0, epochs).values.filter(Number.isInteger)) {
    picture.append(svg("text", { x: x(value), y: HEIGHT - 4, "text-anchor": "middle" }, String(value)));
  }
  for (const { name, color, points, moving, thin, seeds } of drawn) {
    const style = `stroke: var(--s${color % COLORS}); --own: var(--s${color % COLORS})`, last = points.at(-1);
    const line = (class_, through, more = {}) => svg("polyline", { class: class_, style, ...more, points: through.map((p) => `${x(p[0])},${y(p[1])}`).join(" ") });
    picture.append(line(thin ? "line thin" : seeds ? "line mean" : "line", points, color >= COLORS ? { "stroke-dasharray": "6 2" } : {}));
    if (moving && last) picture.append(line("line moving", [last, moving]));
    for (const point of thin && points.length > 1 ? [] : points.length > 40 ? [last] : points) {
      picture.append(svg("circle", { class: "point", style, cx: x(point[0]), cy: y(point[1]), r: 2.5 }, svg("title", {}, `${name}\nepoch ${point[0]}: ${short(point[1])}`)));
    }
    if (moving) picture.append(svg("circle", { class: "point now", style, cx: x(moving[0]), cy: y(moving[1]), r: 4 }));
  }
  const title = TITLES[key] || key, at = ({ points, moving }) => moving || points.at(-1);
  picture.setAttribute("aria-label", drawn.filter((one) => !one.thin).map((one) => `${title} of ${one.name}: ${at(one)
    ? `${short(at(one)[1])} at epoch ${Number(at(one)[0].toFixed(1))} of ${epochs}` : "none yet"}`).join("; "));
  const latest = drawn.length === 1 && at(drawn[0]) ? short(at(drawn[0])[1]) : "";
  return make("figure", { data: { key } }, make("figcaption", {}, title, make("b", { textContent: latest })), picture);
}

function render({ model, el }) {
  const { controls, start, notebook } = model.get("options"), { error, saved, show } = reports(model);
  let state = null, serial = 0, asked = 0, waiting = false, timer = null;

  // -- asking the kernel: every wish is sent, and in between what is new ---------------------------------------------------
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
    foot.textContent = silent > SILENT ? "No answer from the kernel: it is busy, or was restarted (then run this cell again). "
      + "What runs goes on in its own process." : "";
    if (!waiting || silent > 30000) { waiting = false; send({ do: "poll" }); }
    schedule();
  }
  function schedule() {
    clearTimeout(timer);
    timer = setTimeout(poll, el.isConnected && document.visibilityState !== "hidden" && alive() ? FAST : SLOW);
  }

  // -- controls --------------------------------------------------------------------------------------------------------
  const values = { ...model.get("values") }, rows = new Map(), unique = Math.random().toString(36).slice(2);
  function changed(name, value, committed) {
    values[name] = value;
    markChanges();
    if (!committed) return;
    model.set("values", { ...values });
    model.save_changes();
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
  // The inputs of a control, the one that its label names last, and how they show a value.
  function inputsOf({ name, label, kind, choices, low, reach, step }, id) {
    if (choices.length) {
      const list = Object.assign(select("", (value) => changed(name, value, true)), { id });
      return { inputs: [list], show: (value) => fill(list, choices, value) };
    }
    if (kind === "bool") {
      const box = make("input", { type: "checkbox", id, onchange: () => changed(name, box.checked, true) });
      return { inputs: [box], show: (value) => { box.checked = value; } };
    }
    const numeric = kind !== "str", read = () => (!numeric ? box.value : box.value.trim() === "" ? null : Number(box.value));
    const box = make("input", { type: numeric ? "number" : "text", id, step: "any", spellcheck: false,
      oninput: () => { place(read()); changed(name, read(), false); }, onchange: () => changed(name, read(), true) });
    const bar = slider("", `${label}, slider`, { min: low, max: reach, step }, (value) => { box.value = value; changed(name, value, false); });
    bar.onchange = () => changed(name, read(), true);
    const place = (value) => { if (isNumber(value)) bar.value = value; };
    return { inputs: numeric ? [bar, box] : [box], show: (value) => { box.value = value ?? ""; place(value); } };
  }
  function controlRow(control) {
    const { name, label, help: title } = control, id = `dfkd-${name}-${unique}`, own = inputsOf(control, id);
    const element = make("div", { className: "control", title, data: { name } }, make("label", { htmlFor: id, textContent: label, title }), ...own.inputs);
    rows.set(name, { control, element, ...own });
    return element;
  }
  function showValues() {
    Object.assign(values, model.get("values"));
    for (const [name, row] of rows) row.show(values[name]);
    markChanges();
  }
  const reset = button("reset", "Reset", () => act({ do: "reset" }), "back to the notebook's own values"), note = quiet();
  const press = (what, text, title) => button(what, text, () => act({ do: what, values: { ...values } }), title);
  const groups = [...new Set(controls.map((control) => control.group))].map((group) => make("fieldset", {},
    make("legend", { textContent: group }), ...controls.filter((control) => control.group === group).map(controlRow)));

  // -- what the last button did ----------------------------------------------------------------------------------------
  const status = make("div", { className: "status", aria: { role: "status", live: "polite" } });
  function showStatus() {
    show();
    status.textContent = model.get("status");
    for (const [name, { inputs }] of rows) {
      for (const input of inputs) input.ariaInvalid = model.get("field") === name ? "true" : null;
    }
  }

  // -- what runs -------------------------------------------------------------------------------------------------------
  const runs = make("b"), where = quiet(), bar = make("progress", { max: 1, aria: { label: "share of all epochs done" } });
  const stop = button("stop", "■ Stop", () => act({ do: "stop", job: stop.dataset.job }), "end it; the same settings go on from its finished epochs");
  const running = div("running", div("bar", runs, where, stop), bar);
  const current = () => state.jobs.find((job) => job.state === "running");
  function showRunning() {
    const job = current(), p = job?.progress;
    running.hidden = !job;
    delete el.dataset.live;
    if (!job) return;
    runs.textContent = titleOf(job);
    stop.dataset.job = job.id;
    el.dataset.live = p ? `${p.epoch}:${p.step}` : "starting";
    if (!p) {
      where.textContent = `starting · ${time(job.seconds)}`;
      bar.removeAttribute("value");
      return;
    }
    const done = p.history.length >= p.epochs, left = done ? "measuring" : isNumber(p.left) ? `${time(p.left)} left` : "";
    where.textContent = [p.label, `epoch ${p.epoch} of ${p.epochs}`, left].filter(Boolean).join(" · ");
    bar.value = done ? 1 : (p.history.length + (p.steps ? p.step / p.steps : 0)) / p.epochs;
  }

  // -- charts of what runs, and of what is compared --------------------------------------------------------------------
  const charts = div("charts"), legend = div("legend"), verdict = make("div", { className: "verdict", aria: { live: "polite" } });
  const alone = button("alone", "Clear comparison", () => act({ do: "alone" }));
  const swatch = (color) => { const i = make("i"); i.style.background = `var(--s${color % COLORS})`; return i; };
  // A colour a setting, whatever the seed: in legend, charts and table. 0 is what runs, or the last that has.
  const settingOf = (id) => state.curves.find((curve) => curve.id === id)?.setting;
  const settings = () => [...new Set(state.overlaid.map(settingOf))];
  const colorOf = (id) => (state.overlaid.length ? 1 + settings().indexOf(settingOf(id)) : 0);
  function series() {
    const job = current(), { history = [] } = job?.progress ?? {}, beside = state.overlaid.length || !job ? state.curves : [];
    const groups = [...new Set(beside.map((curve) => curve.setting))].map((name) => beside.filter((curve) => curve.setting === name));
    const drawn = (curves) => {
      const each = curves.map((curve) => ({ ...curve, color: colorOf(curve.id), progress: null, thin: curves.length > 1 }));
      const { setting, color } = each[0], seeds = each.length;
      return seeds === 1 ? each : [...each, { ...each[0], name: `${setting}, mean of ${seeds} seeds`, color, seeds, thin: false,
        history: meanOf(each.map((one) => one.history)) }];
    };
    return [...(job ? [{ name: titleOf(job), color: 0, history, progress: job.progress, runs: true }] : []), ...groups.flatMap(drawn)];
  }
  function showCharts() {
    const shown = series(), keys = shown.length ? keysOf(shown) : [], width = Math.max(150, Math.floor(el.clientWidth) - 10);
    const across = Math.max(1, Math.min(keys.length, Math.floor(width / 190))), each = Math.floor((width - 12 * (across - 1)) / across);
    charts.hidden = legend.hidden = !shown.length;
    charts.replaceChildren(...keys.map((key) => chart(key, shown, Math.min(each, 330))));
    legend.replaceChildren(...shown.filter((one) => !one.thin).map(({ name, color, runs: now }) => make("span", {}, swatch(color), now ? `${name} (running)` : name)), quiet("by epoch"));
    verdict.textContent = state.compared;
    verdict.hidden = !state.compared;
    alone.hidden = !state.overlaid.length;
  }

  // -- what waits, and what did not finish -----------------------------------------------------------------------------
  const waits = make("ul", { className: "jobs" });
  const failure = (...children) => make("li", { className: "failed" }, make("em", { textContent: "failed" }), ...children);
  const BUTTONS = { running: [["■ Stop", "stop", "stop"]], queued: [["×", "stop", "take out of the queue"]],
    stopped: [["Go on", "again", "go on from its finished epochs"], ["Clear", "clear", "clear this line"]],
    failed: [["Try again", "again", "run it again"], ["Clear", "clear", "clear this line"]] };
  function jobLine(job) {
    const p = job.progress, ended = job.state === "failed" || job.state === "stopped";
    const after = ended && p?.history.length ? ` after ${p.history.length} of ${p.epochs} epochs` : "";
    const line = make("li", { className: job.state }, make("em", { textContent: job.state === "queued" ? "waits" : job.state }),
      make("span", { textContent: titleOf(job) + after }), ...BUTTONS[job.state].map(([textContent, className, title]) => make("button",
        { className, textContent, title, onclick: () => act({ do: className, job: job.id }), aria: { label: `${title}: ${titleOf(job)}` } })));
    if (job.error) line.append(make("pre", { textContent: job.error }));
    return line;
  }
  function showJobs() {
    waits.replaceChildren(...state.jobs.filter((job) => job !== current()).map(jobLine),
      ...state.lost.map((textContent) => failure(make("pre", { textContent }))));
    waits.hidden = !waits.children.length;
  }

  // -- the table of finished runs --------------------------------------------------------------------------------------
  const tick = (label, onchange) => make("input", { type: "checkbox", aria: { label }, onchange });
  const body = make("tbody"), all = tick("check all rows", () => check(all.checked ? state.rows.map((row) => row.id) : []));
  const header = make("tr", {}, ...COLUMNS.map(([textContent, title = ""], i) => make("th", { className: `c${i}`, textContent, title, scope: "col" })));
  header.firstChild.append(all);
  const scroll = div("scroll", make("table", {}, make("thead", {}, header), body));
  const empty = make("p", { className: "quiet", textContent: "Nothing has finished yet: press Run." });
  function check(ids) {
    model.set("checked", ids);
    model.save_changes();
    showChecks();
  }
  function showChecks() {
    const ids = model.get("checked"), there = state ? state.rows.filter((row) => ids.includes(row.id)).length : 0;
    for (const line of body.children) line.querySelector("input").checked = ids.includes(line.dataset.id);
    all.checked = there > 0 && there === state.rows.length;
    all.indeterminate = there > 0 && !all.checked;
    compare.disabled = there === 0;
    saveFigure.disabled = saveTable.disabled = !state || !state.rows.length;
    saveFigure.textContent = there ? `Save figure of ${there}` : "Save figure";
    saveTable.textContent = there ? `Save CSV of ${there}` : "Save CSV";
    rename.disabled = there === 0 || !newName.value.trim();
    saveParameters.title = there ? "of the checked rows, which may differ in the seed alone" : "of the controls above";
  }
  function whisker(row, low, high) {
    const x = (value) => 4 + 82 * (value - low) / (high - low || 1), own = state.overlaid.includes(row.id);
    const style = own ? `fill: var(--s${colorOf(row.id) % COLORS})` : "";
    return svg("svg", { width: 90, height: 14, "aria-hidden": "true" },
      svg("line", { class: "whisker", x1: x(row.low), x2: x(row.high), y1: 7, y2: 7 }), svg("circle", { class: "dot", style, cx: x(row.accuracy), cy: 7, r: 3 }));
  }
  function tableLine(row, low, high) {
    const title = titleOf(row), small = (textContent) => make("small", { textContent });
    const ticked = tick(`check ${title}`, () => check([...model.get("checked").filter((id) => id !== row.id), ...(ticked.checked ? [row.id] : [])]));
    const acts = [["use", "Use these", "put its settings into the controls", { row: row.id }],
      ...(row.job ? [["clear", "×", "take it off this table; what was trained stays in the store", { job: row.job }]] : [])];
    const half = isNumber(row.half) ? ` ± ${row.half.toFixed(3)}` : "";
    const cells = [ticked, make("span", {}, ...(state.overlaid.includes(row.id) ? [swatch(colorOf(row.id))] : []), row.name, ...(row.differs ? [small(row.differs)] : [])),
      String(row.seed), make("span", {}, make("b", { textContent: row.accuracy.toFixed(2) }), small(`${row.low.toFixed(2)} – ${row.high.toFixed(2)}`)),
      whisker(row, low, high), isNumber(row.agreement) ? row.agreement.toFixed(3) + half : "–", short(row.loss), isNumber(row.seconds) ? time(row.seconds) : "–",
      row.how, make("span", {}, ...acts.map(([className, textContent, what, more]) => make("button", { className, textContent, title: what,
        aria: { label: `${what}: ${title}` }, onclick: () => act({ do: className, ...more }) })))];
    return make("tr", { data: { id: row.id, accuracy: row.accuracy } }, ...cells.map((cell, i) => make("td", { className: `c${i}` }, cell)));
  }
  function showTable() {
    const low = Math.min(...state.rows.map((row) => row.low)), high = Math.max(...state.rows.map((row) => row.high));
    body.replaceChildren(...state.rows.map((row) => tableLine(row, low, high)));
    empty.hidden = state.rows.length > 0;
    scroll.hidden = !state.rows.length;
    showChecks();
  }
  const compare = button("compare", "Compare", () => act({ do: "compare" }), "overlay the curves of the checked rows, and their difference");
  const saveFigure = button("save-figure", "Save figure", () => act({ do: "figure" }), "as svg, pdf and png: the checked rows, or all");
  const saveParameters = button("save-parameters", "Save parameters", () => act({ do: "parameters", values: { ...values } }));
  const saveTable = button("save-csv", "Save CSV", () => act({ do: "csv" }), "the checked rows, or all: settings, accuracy, agreement");
  const newName = make("input", { type: "text", className: "name", placeholder: "new name", spellcheck: false, aria: { label: "new name" },
    oninput: () => showChecks(), onkeydown: (event) => { if (event.key === "Enter" && !rename.disabled) rename.click(); } });
  const rename = button("rename", "Rename", () => { act({ do: "rename", name: newName.value }); },
    "give the checked rows' setting this name");
  const tools = div("bar", compare, alone, saveFigure, saveTable, ...(notebook ? [saveParameters] : []), newName, rename);

  // -- answers from the kernel -----------------------------------------------------------------------------------------
  // Only what has changed is built anew: a button that is being pressed, or has the focus, stays where it is.
  const drawn = {};
  function anew(part, content, showPart) {
    const text = JSON.stringify(content);
    if (drawn[part] !== text) showPart();
    drawn[part] = text;
  }
  function receive(content) {
    waiting = false;
    foot.textContent = "";
    showStatus();
    if (content.kind === "state") {
      state = content;
      showRunning();
      anew("jobs", [state.jobs.filter((job) => job !== current()), state.lost], showJobs);
      anew("rows", [state.rows, state.overlaid], showTable);
      anew("charts", [series(), state.overlaid, state.compared], showCharts);
      el.dataset.version = state.version;
    }
    schedule();
  }
  const foot = div("quiet");
  running.hidden = charts.hidden = legend.hidden = verdict.hidden = alone.hidden = waits.hidden = scroll.hidden = true;
  const away = mount(model, el, "lab", "ablation: set, run and compare students", [
    div("settings", ...groups), div("bar", press("run", "▶ Run", "before all others that wait"), press("queue", "Queue", "after all others that wait"), reset, note),
    status, error, running, waits, legend, charts, verdict, tools, empty, scroll, saved, foot,
  ], { "msg:custom": receive, "change:values": showValues, "change:checked": () => state && showChecks(),
    "change:status change:error change:field": showStatus }, () => state && showCharts());
  showValues();
  showStatus();
  send({ do: "ready" });
  schedule();
  return () => { clearTimeout(timer); away(); };
}

export default { render };
