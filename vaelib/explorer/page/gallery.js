// Images in a row or a wall, each a button: one stop of the Tab key, arrow keys within.
import { element } from "./element.js";
import { sheet } from "./images.js";

export function gallery(root, { columns, shape, pick }) {
  root.classList.add("gallery");
  root.style.setProperty("--columns", columns);
  root.setAttribute("role", "group");
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  let focused = 0;

  function stop(index) {
    root.children[focused]?.setAttribute("tabindex", -1);
    root.children[index]?.setAttribute("tabindex", 0);
    focused = index;
  }
  root.addEventListener("keydown", (event) => {
    const next = root.children[focused + (steps[event.key] ?? NaN)];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  root.addEventListener("focusin", (event) => stop([...root.children].indexOf(event.target)));
  root.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) pick([...root.children].indexOf(button));
  });

  return {
    /** n images, one after the other, with a name for each. */
    show(images, names) {
      const pixels = images.length / names.length;
      while (root.children.length > names.length) root.lastChild.remove();
      while (root.children.length < names.length) root.append(element("button", { type: "button" }, element("canvas")));
      names.forEach((name, i) => {
        const button = root.children[i];
        button.setAttribute("aria-label", name);
        button.title = name;
        button.tabIndex = i === focused ? 0 : -1;
        sheet(images.subarray(i * pixels, (i + 1) * pixels), shape, 1, button.firstChild);
      });
    },
    mark(index) {
      [...root.children].forEach((button, i) => button.classList.toggle("marked", i === index));
    },
  };
}
