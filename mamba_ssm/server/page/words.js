// What the numbers are in plain words.

export const count = (n) => n.toLocaleString("en");

/** How sure an answer is. Confidences of copied answers are calibrated: so many in ten such answers are right. */
export function sureness(answer) {
  if (!answer.answer) return "";
  if (answer.start === null) return "Put together by the model, not copied from the book. Look at the passages before you rely on it.";
  const tenths = Math.round(answer.confidence * 10);
  const share = tenths < 1 ? "fewer than 1 in 10 such answers are" : tenths > 9 ? "more than 9 in 10 such answers are" : `about ${tenths} in 10 such answers are`;
  if (answer.confidence >= 0.8) return `Very likely right: ${share}.`;
  if (answer.confidence >= 0.6) return `Probably right: ${share}.`;
  if (answer.confidence >= 0.4) return `Perhaps right: ${share}.`;
  return `Little more than a guess: ${share}.`;
}

/** What cites a passage, else the page and section of a place, or how far into the book it is. */
export function place(passage, characters) {
  if (passage.citation) return passage.citation;
  const parts = [];
  if (passage.page) parts.push(`page ${passage.page}`);
  if (passage.section) parts.push(passage.section);
  return parts.join(" · ") || `${Math.floor((100 * passage.start) / characters)}% into the book`;
}
