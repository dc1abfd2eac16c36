// A video's scores over time: a line, the uncertain band behind it, a button for each frame; without `onChoose` a dot.

const NS = "http://www.w3.org/2000/svg";
const [HEIGHT, LEFT, BOTTOM, TOP] = [180, 34, 26, 10];

function element(name, attributes, parent) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
}

export function plot(box, face, onChoose) {
  const { frames, threshold } = face;
  // As wide as its place, so that letters keep their size on a phone.
  const width = Math.max(box.clientWidth || 640, 240);
  const last = Math.max(frames.at(-1).seconds, 1e-3);
  const x = (seconds) => LEFT + ((width - LEFT - 10) * seconds) / last;
  const y = (score) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - score);
  const svg = element("svg", {
    viewBox: `0 0 ${width} ${HEIGHT}`, role: onChoose ? "group" : "img", "aria-label": "Scores of the frames",
  });
  if (face.uncertain) {
    const [low, high] = face.uncertain;
    element("rect", {
      class: "zone", x: LEFT, y: y(high), width: width - LEFT - 10, height: y(low) - y(high),
    }, svg);
  }
  for (const score of [0, threshold, 1]) {
    element("line", { class: "axis", x1: LEFT, x2: width - 10, y1: y(score), y2: y(score),
      "stroke-dasharray": score === threshold ? "4 4" : "" }, svg);
    element("text", { x: 2, y: y(score) + 4 }, svg).textContent = score.toFixed(2);
  }
  element("text", { x: LEFT, y: HEIGHT - 6 }, svg).textContent = "0 s";
  element("text", { x: width - 10, y: HEIGHT - 6, "text-anchor": "end" }, svg).textContent =
    `${last.toFixed(1)} s`;
  const points = frames.map((frame) => `${x(frame.seconds)},${y(frame.score)}`).join(" ");
  element("polyline", { class: "track", points }, svg);
  const dots = frames.map((frame) => {
    if (!onChoose) return element("circle", { class: "dot", cx: x(frame.seconds), cy: y(frame.score), r: 4 }, svg);
    const dot = element("g", {
      class: "dot", tabindex: 0, role: "button", "aria-pressed": "false",
      "aria-label": `frame ${frame.frame}, ${frame.seconds.toFixed(1)} s, score ${frame.score.toFixed(2)}`,
    }, svg);
    // Larger than it looks, for fingers.
    element("circle", { cx: x(frame.seconds), cy: y(frame.score), r: 12, "fill-opacity": 0 }, dot);
    element("circle", { cx: x(frame.seconds), cy: y(frame.score), r: 5 }, dot);
    const choose = () => {
      for (const other of dots) other.setAttribute("aria-pressed", String(other === dot));
      onChoose(frame);
    };
    dot.addEventListener("click", choose);
    dot.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose();
    });
    return dot;
  });
  box.replaceChildren(svg);
  return svg;
}
