// A report that needs nothing else: one HTML file without scripts, every text escaped.

import { BANDS, agreement, figures, provenance } from "./words.js";

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const text = (value) => String(value).replace(/[&<>"']/g, (letter) => ESCAPES[letter]);
const rows = (pairs) =>
  `<dl>${pairs.map(([term, what]) => `<dt>${text(term)}</dt><dd>${text(what)}</dd>`).join("")}</dl>`;

const STYLE = `body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:1rem auto;padding:0 1rem;color:#16181d;
background:#fff;overflow-wrap:anywhere}img{max-width:100%}dt{color:#4b5160}dd{margin:0 0 .4rem}
svg{display:block;width:100%;max-width:40rem}.axis{stroke:#7a8191}.zone{fill:#7a5200;opacity:.15}.dot{fill:#0b57c4}
.track{fill:none;stroke:#0b57c4;stroke-width:2}svg text{fill:#4b5160;font-size:12px}
article{border-top:1px solid #7a8191;margin-top:1rem}li{white-space:pre-wrap}`;

// `pictures`: a data URL for each face, or null; `plots`: the SVG of each face of a video.
export function report({ record, info, pictures, plots, dialogue }) {
  const faces = record.faces.map((face, i) => `<article><h2>Face ${i + 1}: ${text(BANDS[face.band])}</h2>
<p>${text(agreement(face))}</p>${rows(figures(face, info.thresholds[record.model]))}
${face.warnings.length ? `<ul>${face.warnings.map((w) => `<li>${text(w)}</li>`).join("")}</ul>` : ""}
${pictures[i] ? `<img alt="The picture with the map of the forged area of face ${i + 1}" src="${text(pictures[i])}">` : ""}
${plots[i] ? `<h3>Scores of the frames</h3>${plots[i]}` : ""}
</article>`).join("");
  const said = dialogue.map((m) => `<li><b>${m.role === "user" ? "Question" : "Answer"}:</b> ${text(m.text)}</li>`);
  const stated = provenance(record.provenance);
  const origin = "provenance" in record
    ? `<h2>Provenance (C2PA)</h2><p>${text(stated.meaning)}</p>${rows(stated.rows)}` : "";
  return `<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Report on ${text(record.file)}</title><style>${STYLE}</style></head><body>
<h1>Report on ${text(record.file)}</h1>
${rows([["SHA-256 of the file", record.sha256], ["Judged", new Date().toISOString()], ["Model", record.model],
    ...Object.entries(info.versions)])}
<h2>What this is, and is not</h2>
<ul>${info.limits.map((line) => `<li>${text(line)}</li>`).join("")}</ul>
${faces}${origin}
${said.length ? `<h2>Dialogue</h2><ul>${said.join("")}</ul>` : ""}</body></html>`;
}

export function download(name, html) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([html], { type: "text/html" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
