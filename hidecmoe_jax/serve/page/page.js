"use strict";
// The page of a served run. Answers, questions and names are hostile input: every text goes in by textContent alone.

const TABS = ["ask", "inbox", "health", "tasks", "threshold"];
const NEEDS = { ask: "reviewer", inbox: "reviewer", health: "viewer", tasks: "viewer", threshold: "viewer" };
const ROLES = ["viewer", "reviewer", "owner"];
const FILE_TYPES = ["image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif", "image/tiff"];

const page = { words: {}, language: "en", state: null, tab: "ask", token: sessionStorage.getItem("token") || "", asked: null };

// ---- words and elements

function word(key, values = {}) {
  const text = page.words[page.language][key];
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "text") made.textContent = value;
    else if (key === "on") for (const [event, call] of Object.entries(value)) made.addEventListener(event, call);
    else if (key === "class") made.className = value;
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function button(key, call, options = {}) {
  return element("button", { type: "button", text: word(key), on: { click: call }, ...options });
}

function byId(id) { return document.getElementById(id); }
function notice(text) { byId("notice").textContent = text; }
function show(...children) { byId("view").replaceChildren(...children.filter((child) => child !== null)); }
function may(role) { return page.state !== null && ROLES.indexOf(page.state.role) >= ROLES.indexOf(role); }

function number(value, digits = 0) {
  return new Intl.NumberFormat(page.language, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}
function percent(share) { return share === null ? word("not_known") : number(100 * share, 1) + " %"; }
function taskName(name) { return name === null || name === "unknown" ? word("no_task") : name; }
function when(time) { return new Date(time).toLocaleString(page.language, { dateStyle: "medium", timeStyle: "short" }); }

// ---- requests

async function send(path, body) {
  const headers = {};
  if (page.token) headers.authorization = "Bearer " + page.token;
  const options = { headers, cache: "no-store" };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  const response = await fetch(path, options);
  if (response.status === 401) askToken();
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new Error(said.error ? said.error.message : word("failed", { status: response.status }));
  }
  return response;
}

async function json(path, body) { return (await send(path, body)).json(); }

async function attempt(call) {
  notice("");
  try { return await call(); } catch (error) { notice(error.message); return undefined; }
}

function askToken() {
  byId("door").hidden = false;
  byId("tabs").hidden = true;
  show();
  byId("token").focus();
}

// ---- ask

function readFile(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error(word("unreadable")));
    reader.readAsDataURL(file);
  });
}

function askView() {
  const picture = { url: null };
  const shown = element("div", {}, element("p", { text: word("drop") }));
  const chooser = element("input", { type: "file", accept: FILE_TYPES.join(","), hidden: true });
  const camera = element("input", { type: "file", accept: "image/*", capture: "environment", hidden: true });
  const take = (file) => attempt(async () => {
    if (!file) return;
    picture.url = await readFile(file);
    const image = element("img", { alt: word("your_picture") });
    image.src = picture.url;
    shown.replaceChildren(image);
  });
  for (const input of [chooser, camera]) input.addEventListener("change", () => take(input.files[0]));
  const drop = element("div", { class: "drop", on: {
    dragover: (event) => { event.preventDefault(); drop.classList.add("over"); },
    dragleave: () => drop.classList.remove("over"),
    drop: (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files[0]); },
    paste: (event) => take(event.clipboardData.files[0]),
  } }, shown, element("div", { class: "row" },
    button("choose", () => chooser.click()), button("camera", () => camera.click())), chooser, camera);
  const question = element("input", { type: "text", id: "question", maxlength: 2000, autocomplete: "off" });
  const result = element("section", { "aria-live": "polite" });
  const go = element("button", { type: "submit", class: "main", text: word("ask") });
  const form = element("form", { on: { submit: (event) => {
    event.preventDefault();
    if (!question.value.trim()) { notice(word("no_question")); question.focus(); return; }
    ask({ question: question.value, url: picture.url }, "auto", result, go);
  } } }, drop, element("label", { for: "question", text: word("question") }), question, element("div", { class: "row" }, go));
  show(form, result);
}

async function ask(asked, model, result, go) {
  go.disabled = true;
  result.replaceChildren(element("p", { class: "faint", text: word("thinking") }));
  const content = [{ type: "text", text: asked.question }];
  if (asked.url) content.push({ type: "image_url", image_url: { url: asked.url } });
  const reply = await attempt(() => json("/v1/chat/completions", { model, messages: [{ role: "user", content }] }));
  go.disabled = false;
  result.replaceChildren();
  if (reply !== undefined) result.replaceChildren(...answerParts(asked, reply, result, go));
}

function answerParts(asked, reply, result, go) {
  const message = reply.choices[0].message;
  const about = reply.hidecmoe;
  const text = message.content === null ? word("refused") : message.content || word("empty");
  const parts = [element("p", { class: "answer", id: "answer", text })];
  const line = element("p", { class: "row" });
  if (about.fit) line.append(element("span", { class: "fit " + about.fit, text: word("fit_" + about.fit) }));
  line.append(element("span", { class: "faint", text: word("answered_by", { task: taskName(about.task), ms: number(about.milliseconds) }) }));
  parts.push(line);
  parts.push(corrections({ id: about.request_id, task: about.task, refused: about.refused }, (task) => ask(asked, task, result, go)));
  return parts;
}

// Buttons about one answer; `again` asks the task that is right.
function corrections(answer, again) {
  const area = element("div");
  const body = element("div");
  const decide = async (decision, more = {}) => {
    if (page.state.log) {
      const done = await attempt(() => json("/v1/reviews", { of: answer.id, decision, ...more }));
      if (done === undefined) return false;
    }
    body.replaceChildren(element("p", { class: "faint", text: word(page.state.log ? "recorded" : "not_recorded") }));
    return true;
  };
  const others = page.state.tasks.filter((task) => task !== answer.task);
  const wrongTask = () => {
    const choice = element("select", { "aria-label": word("right_task") }, ...others.map((task) => element("option", { value: task, text: task })));
    const stranger = page.state.log ? button("new_task", () => newTask(body, decide)) : null;
    const send = async () => { if (await decide("other_task", { task: choice.value }) && again) again(choice.value); };
    body.replaceChildren(element("div", { class: "row" }, ...(others.length ? [choice, button("ask_right_task", send, { class: "main" })] : []), stranger));
    (others.length ? choice : stranger || body).focus();
  };
  const wrongAnswer = () => {
    const typed = element("input", { type: "text", maxlength: 2000, "aria-label": word("right_answer"), placeholder: word("right_answer") });
    const send = async (event) => { event.preventDefault(); if (typed.value.trim()) await decide("answer", { answer: typed.value }); };
    body.replaceChildren(element("form", { class: "row", on: { submit: send } }, typed, element("button", { type: "submit", class: "main", text: word("save") })));
    typed.focus();
  };
  const row = element("div", { class: "row" });
  if (page.state.log && answer.waiting) row.append(button("right", () => decide("right"), { "data-key": "1" }));
  row.append(button("wrong_task", wrongTask, { "data-key": "2" }));
  if (page.state.log && !answer.refused) row.append(button("wrong_answer", wrongAnswer, { "data-key": "3" }));
  if (page.state.log && answer.waiting) row.append(button("bad_picture", () => decide("bad_picture"), { "data-key": "4" }));
  area.append(row, body);
  return area;
}

function newTask(body, decide) {
  const name = element("input", { type: "text", maxlength: 64, "aria-label": word("new_task_name"), placeholder: word("new_task_name") });
  const typed = element("input", { type: "text", maxlength: 2000, "aria-label": word("right_answer_if_known"), placeholder: word("right_answer_if_known") });
  const send = (event) => {
    event.preventDefault();
    if (!name.value.trim()) { name.focus(); return; }
    decide("new_task", typed.value.trim() ? { task: name.value.trim(), answer: typed.value } : { task: name.value.trim() });
  };
  body.replaceChildren(element("form", { class: "row", on: { submit: send } }, name, typed, element("button", { type: "submit", class: "main", text: word("save") })));
  name.focus();
}

// ---- inbox

async function inboxView() {
  const inbox = await attempt(() => json("/v1/page/inbox"));
  if (inbox === undefined) return;
  const cards = await Promise.all(inbox.waiting.map(card));
  const text = inbox.total ? word("waiting", { count: number(inbox.total) }) : word("nothing_waits");
  show(element("h2", { text }), inbox.total ? element("p", { class: "faint", text: word("inbox_help") }) : null, ...cards);
}

async function card(line) {
  const picture = await kept(line);
  const said = line.refused ? word("refused") : line.answer === null ? word("private") : line.answer;
  const box = element("article", { class: "card", tabindex: "0", "data-id": line.id }, picture.shown);
  const side = element("div", {},
    element("p", { class: "faint", text: when(line.time) + " · " + word("why_" + line.sampled) }),
    element("p", { text: line.question === null ? word("private") : line.question }),
    element("p", { class: "said", text: said }),
    line.refused ? "" : element("p", { class: "faint", text: word("answered_as", { task: taskName(line.task) }) }));
  const again = (task) => attempt(async () => {
    const result = element("p", { class: "said", text: word("thinking") });
    side.append(result);
    if (line.question === null || picture.missing) { result.textContent = word("cannot_ask_again"); return; }
    const content = [{ type: "text", text: line.question }, ...picture.urls.map((url) => ({ type: "image_url", image_url: { url } }))];
    const reply = await json("/v1/chat/completions", { model: task, messages: [{ role: "user", content }] });
    result.textContent = word("now_answers", { task, answer: reply.choices[0].message.content || word("empty") });
  });
  side.append(corrections({ id: line.id, task: line.task, refused: line.refused, waiting: true }, again));
  box.append(side);
  box.addEventListener("keydown", (event) => {
    if (event.target !== box) return;
    const pressed = box.querySelector('[data-key="' + CSS.escape(event.key) + '"]');
    if (pressed) { event.preventDefault(); pressed.click(); }
  });
  return box;
}

async function kept(line) {
  const urls = [];
  for (const digest of line.pictures) {
    try { urls.push(await readFile(await (await send("/v1/page/picture", { digest })).blob())); } catch (error) { break; }
  }
  const missing = urls.length < line.pictures.length;
  const shown = urls.length ? element("img", { alt: word("their_picture") }) : element("div", { class: "nopicture", text: word(line.pictures.length ? "picture_not_kept" : "no_picture") });
  if (urls.length) shown.src = urls[0];
  return { urls, missing, shown };
}

// ---- health

async function healthView() {
  const health = await attempt(() => json("/v1/page/health"));
  if (health === undefined) return;
  const box = (value, key, values) => element("div", {}, element("b", { text: value }), element("span", { text: word(key, values) }));
  const rate = health.misrouting;
  show(
    element("h2", { text: word("today") }),
    element("div", { class: "numbers" },
      box(number(health.today.answers), "answers"), box(number(health.today.unknown), "unknown"),
      box(number(health.today.corrected), "corrected"),
      box(health.today.p95 === null ? "–" : number(health.today.p95) + " ms", "p95"), box(number(health.waiting), "wait")),
    element("h2", { text: word("thirty_days") }), chart(health.days),
    element("p", { class: "faint", text: word("chart") }),
    element("h2", { text: word("wrong_tasks") }),
    element("p", { class: "big", text: rate.reviewed ? word("rate", { rate: percent(rate.value), low: percent(rate.low), high: percent(rate.high), reviewed: number(rate.reviewed) }) : word("no_reviews") }),
    health.confusions.length ? table(["answered", "right_would_be", "about", "cost"], health.confusions.map((row) => [
      taskName(row.task), taskName(row.right), number(row.answers, 1), number(row.cost) + " " + health.currency])) : null);
}

function chart(days) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  const most = Math.max(1, ...days.map((day) => day.answers));
  drawing.setAttribute("viewBox", "0 0 300 100");
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", days.map((day) => day.day + ": " + day.answers).join(", "));
  days.forEach((day, place) => {
    for (const [name, count] of [["all", day.answers], ["unknown", day.unknown]]) {
      const bar = document.createElementNS(space, "rect");
      const height = 95 * count / most;
      for (const [key, value] of Object.entries({ x: place * 10 + 1, y: 100 - height, width: 8, height, class: name })) bar.setAttribute(key, value);
      drawing.append(bar);
    }
  });
  return drawing;
}

function table(heads, rows, numeric = 2) {
  const cell = (kind, text, place) => {
    const options = { class: place >= numeric && !(text instanceof Node) ? "n" : "", "data-label": kind === "td" && heads[place] ? word(heads[place]) : null };
    return text instanceof Node ? element(kind, options, text) : element(kind, { ...options, text });
  };
  return element("div", { class: "wide" }, element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((key, place) => cell("th", key ? word(key) : "", place)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text, place) => cell("td", text, place)))))));
}

// ---- tasks

async function tasksView() {
  const tasks = await attempt(() => json("/v1/page/tasks"));
  if (tasks === undefined) return;
  const size = (bytes) => bytes === null ? "–" : number(bytes / 1e6, 1) + " MB";
  const score = (value) => value === null ? "–" : number(value);
  const rows = tasks.tasks.map((task) => {
    const row = [task.title + (task.retired ? " · " + word("is_retired") : ""), task.since ? new Date(task.since).toLocaleDateString(page.language) : "–", score(task.score), score(task.floor), size(task.bytes)];
    if (may("owner")) row.push(element("div", { class: "row" }, button("try_retire", () => change({ kind: "retire", task: task.name }, true), { disabled: task.retired, class: "quiet" })));
    return row;
  });
  const area = element("div", { id: "change", "aria-live": "polite" });
  show(table(["task", "since", "score", "floor", "size", ...(may("owner") ? [""] : [])], rows),
    element("p", { class: "faint", text: word("score_help") }),
    may("owner") ? mergeForm(tasks.tasks.filter((task) => !task.retired)) : element("p", { class: "faint", text: word("owners_change") }),
    may("owner") ? element("div", { class: "row" }, button("undo", () => change({ kind: "restore" }, false))) : null, area);
  if (tasks.changing) follow();
}

function mergeForm(tasks) {
  if (tasks.length < 2) return null;
  const choice = (key) => element("select", { "aria-label": word(key) }, ...tasks.map((task) => element("option", { value: task.name, text: task.title })));
  const into = choice("merge_into");
  const task = choice("merge_task");
  task.selectedIndex = 1;
  return element("div", { class: "row" }, into, task, button("try_merge", () => change({ kind: "merge", into: into.value, task: task.value }, true)));
}

async function change(request, trial) {
  const begun = await attempt(() => json("/v1/page/change", { ...request, commit: !trial }));
  if (begun !== undefined) follow(trial ? request : null);
}

async function follow(request = null) {
  const area = byId("change");
  if (!area) return;
  const state = await attempt(() => json("/v1/page/changes"));
  if (state === undefined || !area.isConnected) return;
  const output = element("pre", { text: state.lines.join("\n") });
  const numbers = state.tasks.length ? table(["task", "questions", "now", "then"], state.tasks.map((row) => [
    row.task, number(row.count), number(row.before), number(row.after)]), 1) : null;
  const details = element("details", {}, element("summary", { text: word("details") }), output);
  if (state.state === "failed") details.open = true;
  area.replaceChildren(element("h2", { text: word("change_" + state.state) }), ...(numbers ? [numbers] : []), details);
  if (state.state === "running") { setTimeout(() => follow(request), 1500); return; }
  if (request && state.state === "done") area.append(element("p", { text: word("confirm_help") }), button("confirm", () => change(request, false), { class: "main" }));
}

// ---- threshold

async function thresholdView() {
  const settings = await attempt(() => json("/v1/page/threshold"));
  if (settings === undefined) return;
  const area = element("div", { id: "change", "aria-live": "polite" });
  if (!settings.settings.length) {
    show(element("p", { text: word("not_calibrated") }),
      may("owner") ? button("measure", () => change({ kind: "calibrate", false_alarms: 0.01 }, false), { class: "main" }) : null, area);
    return;
  }
  const rows = settings.settings;
  const sentence = element("p", { class: "big", id: "sentence" });
  const current = Math.max(0, rows.findIndex((row) => row.false_alarms === settings.false_alarms));
  const slider = element("input", { type: "range", min: 0, max: rows.length - 1, step: 1, id: "slider" });
  slider.value = current;
  const set = button("set", () => change({ kind: "calibrate", false_alarms: rows[slider.value].false_alarms }, false), { class: "main" });
  const describe = () => {
    const row = rows[slider.value];
    const caught = row.caught === null ? "" : word("caught", { caught: number(row.caught) });
    sentence.textContent = word("lost", { lost: number(row.lost, row.lost < 10 && row.lost % 1 ? 1 : 0) }) + caught;
    slider.setAttribute("aria-valuetext", sentence.textContent);
    set.disabled = Number(slider.value) === current;
  };
  slider.addEventListener("input", describe);
  describe();
  show(element("label", { for: "slider", text: word("slider") }), slider,
    element("p", { class: "faint ends" }, element("span", { text: word("few_back") }), element("span", { text: word("many_back") })),
    sentence, element("p", { class: "faint", text: word("measured_on", { source: settings.source }) }),
    may("owner") ? element("div", { class: "row" }, set, button("undo", () => change({ kind: "restore" }, false))) : element("p", { class: "faint", text: word("owners_change") }), area);
}

// ---- the frame

const VIEWS = { ask: askView, inbox: inboxView, health: healthView, tasks: tasksView, threshold: thresholdView };

function open(tab, focus = false) {
  page.tab = tab;
  location.hash = tab;
  for (const each of byId("tabs").children) {
    const selected = each.dataset.tab === tab;
    each.setAttribute("aria-selected", String(selected));
    each.tabIndex = selected ? 0 : -1;
    if (selected && focus) each.focus();
  }
  notice("");
  show();
  VIEWS[tab]();
}

function tabs() {
  const allowed = TABS.filter((tab) => may(NEEDS[tab]) && (page.state.log || !["inbox", "health"].includes(tab)));
  const buttons = allowed.map((tab) => element("button", { type: "button", role: "tab", "data-tab": tab, text: word("tab_" + tab), on: { click: () => open(tab) } }));
  byId("tabs").replaceChildren(...buttons);
  byId("tabs").hidden = false;
  byId("tabs").onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    open(allowed[(allowed.indexOf(page.tab) + step + allowed.length) % allowed.length], true);
  };
  const asked = location.hash.slice(1);
  open(allowed.includes(asked) ? asked : allowed.includes(page.tab) ? page.tab : allowed[0]);
}

function translate() {
  document.documentElement.lang = page.language;
  for (const each of document.querySelectorAll("[data-word]")) each.textContent = word(each.dataset.word);
  const other = page.language === "en" ? "ja" : "en";
  byId("language").textContent = page.words[other].name_of_language;
  byId("language").lang = other;
}

async function enter() {
  const state = await attempt(() => json("/v1/page/state"));
  if (state === undefined) {
    // The run is being loaded, or the server is gone for a moment.
    if (byId("door").hidden) setTimeout(enter, 3000);
    return;
  }
  page.state = state;
  byId("door").hidden = true;
  byId("run").textContent = state.run;
  byId("person").textContent = state.name ? state.name + " · " + word("role_" + state.role) : "";
  tabs();
}

async function begin() {
  page.words = await (await fetch("/page/words.json")).json();
  const wished = localStorage.getItem("language") || navigator.language.slice(0, 2);
  page.language = wished in page.words ? wished : "en";
  translate();
  byId("language").addEventListener("click", () => {
    page.language = page.language === "en" ? "ja" : "en";
    localStorage.setItem("language", page.language);
    translate();
    if (page.state) enter();
  });
  byId("door").addEventListener("submit", (event) => {
    event.preventDefault();
    page.token = byId("token").value.trim();
    sessionStorage.setItem("token", page.token);
    byId("token").value = "";
    enter();
  });
  await enter();
}

begin();
