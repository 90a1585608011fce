// The model card: the Markdown that vaelib writes (headings, paragraphs, tables, code), as elements, never as HTML.

import { element } from "./element.js";

const holding = (name, ...children) => element(name, {}, ...children);
const inline = (text) =>
  text.split(/(`[^`]+`)/).map((part) => (part.startsWith("`") && part.length > 1 ? holding("code", part.slice(1, -1)) : part));

function table(lines) {
  const cells = lines.map((line) => line.slice(1, -1).split("|").map((cell) => cell.trim()));
  const row = (texts, name) => holding("tr", ...texts.map((text) => holding(name, ...inline(text))));
  const head = cells[0].some(Boolean) ? [holding("thead", row(cells[0], "th"))] : [];
  const body = holding("tbody", ...cells.slice(2).map((texts) => row(texts, "td")));
  return element("div", { className: "scrolled" }, holding("table", ...head, body));
}

export function markdown(text) {
  const body = text.replace(/^---\n[\s\S]*?\n---\n/, ""); // front matter
  return body.split(/(```[\s\S]*?```)/).flatMap((part) => {
    if (part.startsWith("```")) return [holding("pre", holding("code", part.replace(/^```\w*\n|```$/g, "")))];
    return part.split(/\n{2,}/).map((block) => block.trim()).filter(Boolean).map((block) => {
      const heading = /^(#+) (.*)/.exec(block);
      if (heading) return holding(`h${Math.min(6, heading[1].length + 1)}`, ...inline(heading[2]));
      const lines = block.split("\n");
      return lines[0].startsWith("|") ? table(lines) : holding("p", ...inline(lines.join(" ")));
    });
  });
}

export function mountCard(scene) {
  document.getElementById("card-text").append(...markdown(scene.card));
}
