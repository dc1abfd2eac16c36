// A verdict in words: what the figures mean, and what it means when they differ.

export const BANDS = {
  real: "The detector sees no forgery",
  fake: "The detector calls it forged",
  uncertain: "Uncertain: the detector cannot tell",
};

export function agreement(face) {
  const uncertain = face.band === "uncertain";
  const detector = face.score >= face.threshold ? "forged" : "not forged";
  if (face.p_yes === null) return "The language model was not asked.";
  if (face.agree === null) {
    return "The written answer says neither yes nor no, so the two cannot be compared.";
  }
  if (face.agree) {
    return uncertain ? `The language model says ${detector}, and so the detector leans, though it is uncertain.`
      : `Detector and language model agree: ${detector}.`;
  }
  const model = face.p_yes >= 0.5 ? "forged" : "not forged";
  const says = uncertain ? "is uncertain and leans to" : "says";
  return `They disagree: the detector ${says} ${detector}, the language model says ${model}. Take neither for granted; `
    + "the score has been evaluated more thoroughly than the answers.";
}

const SIGNED = {
  valid: "Signed, and unchanged since. Whether to believe the signer was not checked: anybody can make a certificate.",
  trusted: "Signed with a certificate that is trusted, and unchanged since.",
  invalid: "Signed, but the signature does not hold: the file was changed since, or the signature is broken.",
  unreadable: "There is a record of provenance that cannot be read.",
};

// What the file states of its origin: a sentence, and terms with descriptions, as text.
export function provenance(stated) {
  if (!stated) return { meaning: "The file states nothing of its origin, like most files.", rows: [] };
  const rows = [["Signed by", stated.signed_by], ["Signed at", stated.signed_at], ["Program", stated.program],
    ["Actions", stated.actions.join(", ")], ["Kind of source", stated.sources.join(", ")],
    ["Problems", stated.problems.join(", ")]];
  return { meaning: `${SIGNED[stated.state] ?? stated.state} It is no part of the score.`,
    rows: rows.filter(([, what]) => what) };
}

const percent = (value) => (value === null ? "not asked" : `${(100 * value).toFixed(1)} %`);

// Term and description, as text; `low` and `high` are the borders of the uncertain band.
export function figures(face, [low, high]) {
  const band = low < high ? `; uncertain from ${low.toFixed(3)} to ${high.toFixed(3)}` : "";
  const rows = [
    ["Score", `${face.score.toFixed(3)} (forged from ${face.threshold.toFixed(3)} on${band})`],
    ["P(yes)", `${percent(face.p_yes)}: how likely the language model says that it is forged`],
    ["Regions", face.regions.length ? face.regions.join(", ") : "none named"],
    ["Answer", face.answer ?? "not asked"],
  ];
  if (face.frames) {
    rows.push(["Frames", `${face.frames.length} judged; described: frame ${face.frame}, ${face.seconds.toFixed(1)} s`]);
  }
  return rows;
}
