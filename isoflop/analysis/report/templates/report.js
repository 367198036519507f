"use strict";
(() => {
  // Tables: numbers sort as numbers, missing values stay last in both directions.
  const compare = (isNumber) => (a, b) =>
    isNumber ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
  const sort = (table, column, isNumber, descending) => {
    const body = table.tBodies[0];
    const order = compare(isNumber);
    const rows = [...body.rows].map((row, index) => (
      { row, index, value: row.cells[column].dataset.value }
    ));
    rows.sort((a, b) => {
      if (a.value === undefined || b.value === undefined) {
        return (a.value === undefined) - (b.value === undefined) || a.index - b.index;
      }
      return (descending ? -1 : 1) * order(a.value, b.value) || a.index - b.index;
    });
    body.append(...rows.map((entry) => entry.row));
  };
  for (const head of document.querySelectorAll("th[aria-sort]")) {
    head.firstElementChild.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(head.closest("table"), head.cellIndex, head.classList.contains("number"), descending);
    });
  }

  // Figures: the marker nearest to the pointer, or the next one by arrow key, tells its values.
  const REACH_PX = 24;
  const tip = document.getElementById("tip");
  let lit = null;
  const hide = () => {
    tip.hidden = true;
    if (lit) lit.classList.remove("lit");
    lit = null;
  };
  const centre = (marker) => {
    const box = marker.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const show = (marker) => {
    if (marker === lit) return;
    hide();
    lit = marker;
    marker.classList.add("lit");
    tip.textContent = marker.dataset.tip;
    tip.hidden = false;
    place();
  };
  const place = () => {
    if (!lit) return;
    const [x, y] = centre(lit);
    const left = Math.min(x + 12, document.documentElement.clientWidth - tip.offsetWidth - 4);
    const below = y + 14 + tip.offsetHeight < window.innerHeight;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${below ? y + 14 : Math.max(4, y - 14 - tip.offsetHeight)}px`;
  };
  for (const chart of document.querySelectorAll(".chart")) {
    const markers = [...chart.querySelectorAll("[data-tip]")];
    const point = (event) => {
      let best = null;
      let least = REACH_PX;
      for (const marker of markers) {
        const [x, y] = centre(marker);
        const distance = Math.hypot(x - event.clientX, y - event.clientY);
        if (distance < least) [best, least] = [marker, distance];
      }
      if (best) show(best); else hide();
    };
    chart.addEventListener("pointermove", point);
    chart.addEventListener("pointerdown", point);
    chart.addEventListener("pointerleave", hide);
    chart.addEventListener("blur", hide);
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step || !markers.length) return;
      event.preventDefault();
      const here = markers.indexOf(lit);
      const next = here < 0 && step < 0 ? markers.length - 1 : here + step;
      const marker = markers[(next + markers.length) % markers.length];
      marker.scrollIntoView({ block: "nearest", inline: "nearest" });
      show(marker);
    });
  }
  // Scrolling a chart on a narrow screen counts too, hence the capture.
  document.addEventListener("scroll", place, { passive: true, capture: true });
})();
