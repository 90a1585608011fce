// Tabs by https://www.w3.org/WAI/ARIA/apg/patterns/tabs/; the address's fragment remembers which.

export function mountTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const panel = (tab) => document.getElementById(tab.getAttribute("aria-controls"));
  const events = new EventTarget();

  function show(tab) {
    for (const other of tabs) {
      other.setAttribute("aria-selected", other === tab);
      other.tabIndex = other === tab ? 0 : -1;
      panel(other).hidden = other !== tab;
    }
    tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    history.replaceState(null, "", `#${panel(tab).id}`);
    events.dispatchEvent(new Event(panel(tab).id));
  }

  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => show(tab));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = tabs[(to + tabs.length) % tabs.length];
      next.focus();
      show(next);
    });
  });
  const open = (id) => show(tabs.find((tab) => panel(tab).id === id) ?? tabs[0]);
  const isOpen = (id) => !document.getElementById(id).hidden;
  open(location.hash.slice(1));

  return {
    open,
    isOpen,
    /** Do work as soon as the view is open, and again after each event of the point. */
    keep(id, work, point, event) {
      let [wanted, done] = [1, 0];
      const refresh = async () => {
        const now = wanted;
        if (done === now || !isOpen(id)) return;
        await work();
        done = now;
      };
      events.addEventListener(id, refresh);
      point.addEventListener(event, () => {
        wanted++;
        refresh();
      });
      refresh();
    },
  };
}
