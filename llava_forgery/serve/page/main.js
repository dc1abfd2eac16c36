// The page: a file goes in, a verdict comes out, and can be talked about.

import * as api from "./api.js";
import { draw, heatMap } from "./draw.js";
import { plot } from "./plot.js";
import { download, report } from "./report.js";
import { BANDS, agreement, figures, provenance } from "./words.js";

const $ = (id) => document.getElementById(id);
const state = { info: null, file: null, record: null, source: null, chosen: 0, maps: {}, dialogue: [], frame: null,
  work: null, answer: null };

const faces = () => state.record?.faces ?? [];
const face = () => faces()[state.chosen];
const isFilm = () => Boolean(face()?.frames);

function say(status = "", problem = "") {
  $("status").textContent = status;
  $("problem").textContent = problem;
}

function failed(error) {
  if (error.name === "AbortError") return;
  const later = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  say("", error.message + later);
  if (error.status === 401) {
    $("token-form").hidden = false;
    $("token").focus();
  }
}

// Judging

async function judge(file) {
  state.work?.abort();
  state.answer?.abort();
  const work = (state.work = new AbortController());
  state.file = file;
  $("result").hidden = $("talk").hidden = true;
  say(`Judging ${file.name} …`);
  try {
    const fields = { masks: "png", ...chosenFields() };
    const record = await api.detect(file, fields, (share) => {
      $("progress").hidden = false;
      $("progress").value = share;
    }, work.signal);
    if (work.signal.aborted) return;
    Object.assign(state, { record, chosen: 0, maps: {}, dialogue: [], frame: null });
    await show(file);
    say(`${record.file}: ${record.faces.length} ${record.faces.length === 1 ? "face" : "faces"} judged.`);
  } catch (error) {
    if (state.work === work) failed(error);
  } finally {
    if (state.work === work) $("progress").hidden = true;
  }
}

function chosenFields() {
  const fields = { cropped: $("cropped").checked };
  if ($("model").value) fields.model = $("model").value;
  return fields;
}

async function show(file) {
  const url = URL.createObjectURL(file);
  if (state.url) URL.revokeObjectURL(state.url);
  state.url = url;
  const video = $("video");
  $("stage").classList.toggle("film", isFilm());
  video.hidden = !isFilm();
  if (isFilm()) {
    state.source = null;
    video.src = url;
    await new Promise((resolve) => {
      video.onloadedmetadata = video.onerror = resolve;
    });
    state.size = [video.videoWidth, video.videoHeight];
    seek(face());
  } else {
    video.removeAttribute("src");
    const image = new Image();
    image.src = url;
    // The server reads formats that browsers do not.
    state.source = await image.decode().then(() => image, () => null);
    state.size = [image.naturalWidth, image.naturalHeight];
  }
  // The last file's explanations are not this one's.
  offerMaps([]);
  $("faces").replaceChildren(...faces().map((_, i) => faceButton(i)));
  $("faces-box").hidden = faces().length < 2;
  $("log").replaceChildren();
  // Only a server with c2pa-python has looked for it.
  $("provenance-box").hidden = !("provenance" in state.record);
  const stated = provenance(state.record.provenance);
  $("provenance-meaning").textContent = stated.meaning;
  list($("provenance"), stated.rows);
  $("result").hidden = $("talk").hidden = false;
  await choose(0);
  $("result-title").focus();
}

function faceButton(i) {
  const label = document.createElement("label");
  const radio = Object.assign(document.createElement("input"), { type: "radio", name: "face", checked: i === 0 });
  radio.addEventListener("change", () => choose(i));
  label.append(radio, ` ${i + 1}`);
  return label;
}

function list(place, rows) {
  place.replaceChildren(...rows.flatMap(([term, what]) => [
    Object.assign(document.createElement("dt"), { textContent: term }),
    Object.assign(document.createElement("dd"), { textContent: what }),
  ]));
}

async function choose(i) {
  if (i !== state.chosen) endDialogue();
  state.chosen = i;
  const chosen = face();
  $("band").textContent = BANDS[chosen.band];
  $("band").className = chosen.band;
  list($("figures"), figures(chosen, uncertainBand()));
  $("agreement").textContent = agreement(chosen);
  $("warnings").replaceChildren(...chosen.warnings.map((warning) =>
    Object.assign(document.createElement("li"), { textContent: warning })));
  $("plot-box").hidden = !isFilm();
  if (isFilm()) plot($("plot"), withBand(chosen), seek);
  await redraw();
}

const uncertainBand = () => state.info.thresholds[state.record.model];
const withBand = (one) => ({ ...one, uncertain: uncertainBand() });

function endDialogue() {
  state.answer?.abort();
  state.dialogue = [];
  $("log").replaceChildren();
}

// The picture

async function redraw() {
  const which = $("map").value;
  const key = `${state.chosen} ${which}`;
  if (which === "mask") state.maps[key] ??= await heatMap(face().mask);
  const map = which === "none" ? null : state.maps[key] ?? null;
  const [width, height] = state.size;
  const shown = faces().map((one) => (!isFilm() || one.frame === state.frame ? one : null));
  draw($("canvas"), { source: state.source, width, height, faces: shown, chosen: state.chosen, map,
    opacity: $("opacity").value / 100 });
  if (!width) {
    $("caption").textContent = "This browser cannot show the file. The server can read it: the verdict holds.";
  } else {
    $("caption").textContent = shown[state.chosen]
      ? "" : `Frame ${state.frame}: map and box are of frame ${face().frame}.`;
  }
}

function seek(frame) {
  state.frame = frame.frame;
  // The middle of a frame that is shown from there on.
  $("video").currentTime = frame.seconds + 0.001;
  if (state.record) redraw();
}

function offerMaps(explained) {
  const options = [["mask", "forged area"], ...explained, ["none", "none"]];
  $("map").replaceChildren(...options.map(([value, name]) => new Option(name, value)));
}

async function why() {
  const button = $("explain");
  button.disabled = true;
  say("Computing the maps …");
  try {
    const file = isFilm() ? await shownFrame() : state.file;
    const fields = chosenFields();
    fields.cropped ||= oneOfSeveral();
    const { faces: found } = await api.explain(file, fields, new AbortController().signal);
    for (const [place, explained] of found.entries()) {
      const i = isFilm() ? state.chosen : place;
      if (isFilm() && place) break;
      state.maps[`${i} grad-cam`] = await heatMap(explained.grad_cam);
      for (const layer of explained.consistency) state.maps[`${i} ${layer.tap}`] = await heatMap(layer.map);
    }
    offerMaps([["grad-cam", "Grad-CAM: what speaks for forged"],
      ...found[0].consistency.map((layer) => [layer.tap, `consistency, layer ${layer.tap}: nearer to forged`])]);
    $("map").value = "grad-cam";
    await redraw();
    say("The maps are there: choose one.");
  } catch (error) {
    failed(error);
  } finally {
    button.disabled = false;
  }
}

// Of several people in a video, a frame does not tell which is meant: the face is cut out of its own.
const oneOfSeveral = () => isFilm() && faces().length > 1;

const settled = (video) => new Promise((resolve) => {
  if (video.seeking) video.addEventListener("seeked", resolve, { once: true });
  else resolve();
});

async function shownFrame() {
  const video = $("video");
  if (!state.size[0]) throw new Error("This browser cannot show the video, so no frame of it can be sent.");
  if (oneOfSeveral() && state.frame !== face().frame) seek(face());
  await settled(video);
  const canvas = document.createElement("canvas");
  const [x0, y0, x1, y1] = oneOfSeveral() ? face().box : [0, 0, ...state.size];
  [canvas.width, canvas.height] = [x1 - x0, y1 - y0];
  canvas.getContext("2d").drawImage(video, -x0, -y0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  return new File([blob], `frame-${state.frame}.png`, { type: "image/png" });
}

// Talking

const dataUrl = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

function line(role, text) {
  const item = document.createElement("li");
  item.className = role;
  const who = Object.assign(document.createElement("span"), { className: "who",
    textContent: role === "question" ? "You" : "Model" });
  const said = Object.assign(document.createElement("span"), { textContent: text });
  item.append(who, said);
  $("log").append(item);
  return said;
}

async function ask(question) {
  state.answer?.abort();
  const answer = (state.answer = new AbortController());
  // Before anything is awaited: a second question cannot be sent in between.
  $("send").disabled = true;
  $("stop").hidden = false;
  line("question", question);
  const said = line("answer", "");
  const turns = [...state.dialogue, { role: "user", text: question }];
  try {
    if (!state.dialogue.length) {
      state.picture = await dataUrl(isFilm() ? await shownFrame() : state.file);
    }
    const messages = turns.map(({ role, text }, i) => ({ role, content: i ? text : [
      { type: "text", text }, { type: "image_url", image_url: { url: state.picture } }] }));
    const body = { model: state.record.model, messages,
      forgery: { face: isFilm() ? 0 : state.chosen, cropped: $("cropped").checked || oneOfSeveral() } };
    for await (const piece of api.chat(body, answer.signal)) said.textContent += piece;
    state.dialogue = [...turns, { role: "assistant", text: said.textContent }];
    if (!said.textContent) said.textContent = "(no answer)";
    say();
  } catch (error) {
    said.textContent ||= error.name === "AbortError" ? "(stopped)" : "(failed)";
    failed(error);
  } finally {
    // A newer question may have stopped this one: the buttons are then its own.
    if (state.answer === answer) {
      $("send").disabled = false;
      $("stop").hidden = true;
    }
  }
}

// Reporting

async function save() {
  const video = $("video");
  const [width, height] = state.size;
  const [pictures, plots, before] = [[], [], video.currentTime];
  for (const [chosen, one] of faces().entries()) {
    if (isFilm()) {
      video.currentTime = one.seconds + 0.001;
      await settled(video);
      plots.push(plot(document.createElement("div"), withBand(one), null).outerHTML);
    }
    const canvas = document.createElement("canvas");
    const shown = faces().map((other) => (!isFilm() || other.frame === one.frame ? other : null));
    draw(canvas, { source: state.source ?? video, width, height, faces: shown, chosen,
      map: await heatMap(one.mask), opacity: $("opacity").value / 100 });
    pictures.push(width ? canvas.toDataURL("image/jpeg", 0.9) : null);
  }
  if (isFilm()) video.currentTime = before;
  const html = report({ record: state.record, info: state.info, pictures, plots, dialogue: state.dialogue });
  download(`report-${state.record.sha256.slice(0, 12)}.html`, html);
}

// Wiring

$("file").addEventListener("change", () => $("file").files[0] && judge($("file").files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) judge(event.dataTransfer.files[0]);
  });
}
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", async () => {
    const name = button.dataset.sample;
    const blob = await (await fetch(`page/${name}`)).blob();
    judge(new File([blob], name, { type: blob.type }));
  });
}
$("cropped").addEventListener("change", () => state.file && judge(state.file));
$("map").addEventListener("change", redraw);
$("opacity").addEventListener("input", redraw);
$("explain").addEventListener("click", why);
$("report").addEventListener("click", save);
$("stop").addEventListener("click", () => state.answer?.abort());
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  $("question").value = "";
  if (question) ask(question);
});
for (const button of document.querySelectorAll("#suggestions button")) {
  button.addEventListener("click", () => {
    $("question").value = button.textContent;
    $("ask").requestSubmit();
  });
}
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.useToken($("token").value);
  $("token-form").hidden = true;
  start();
});

async function start() {
  try {
    state.info = await api.info();
    $("model").replaceChildren(...state.info.models.map((name) => new Option(name, name)));
    $("model-choice").hidden = state.info.models.length < 2;
    say();
  } catch (error) {
    failed(error);
  }
}

start();
