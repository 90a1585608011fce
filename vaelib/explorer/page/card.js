// The model card: the Markdown that vaelib writes (headings, paragraphs, tables, code), as elements, never as HTML.

function inline(text) {
  return text.split(/(`[^`]+`)/).map((part) =>
    part.startsWith("`") && part.length > 1
      ? Object.assign(document.createElement("code"), { textContent: part.slice(1, -1) })
      : part,
  );
}

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function table(lines) {
  const cells = lines.map((line) => line.slice(1, -1).split("|").map((cell) => cell.trim()));
  const row = (texts, name) => element("tr", ...texts.map((text) => element(name, ...inline(text))));
  const head = cells[0].some(Boolean) ? [element("thead", row(cells[0], "th"))] : [];
  const scrolled = element("div", element("table", ...head, element("tbody", ...cells.slice(2).map((texts) => row(texts, "td")))));
  scrolled.className = "scrolled";
  return scrolled;
}

export function markdown(text) {
  const body = text.replace(/^---\n[\s\S]*?\n---\n/, ""); // front matter
  return body.split(/(```[\s\S]*?```)/).flatMap((part) => {
    if (part.startsWith("```")) return [element("pre", element("code", part.replace(/^```\w*\n|```$/g, "")))];
    return part.split(/\n{2,}/).map((block) => block.trim()).filter(Boolean).map((block) => {
      const heading = /^(#+) (.*)/.exec(block);
      if (heading) return element(`h${Math.min(6, heading[1].length + 1)}`, ...inline(heading[2]));
      const lines = block.split("\n");
      return lines[0].startsWith("|") ? table(lines) : element("p", ...inline(lines.join(" ")));
    });
  });
}

export function mountCard(scene) {
  const root = document.getElementById("card-text");
  root.append(...(scene.card ? markdown(scene.card) : [element("p", "This bundle has no model card.")]));
}
