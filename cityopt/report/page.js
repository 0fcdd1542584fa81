"use strict";
// Tips, one trial lit up in all charts, a table that sorts, pictures that enlarge. Without it the page still says all.
(() => {
  const tip = document.getElementById("tip");
  const FIRST_ROWS = 25;
  let pinned = null;

  const light = (trial) => {
    document.body.classList.toggle("pointing", trial !== null);
    for (const lit of document.querySelectorAll(".lit")) lit.classList.remove("lit");
    if (trial === null) return;
    for (const part of document.querySelectorAll(`[data-trial="${Number(trial)}"]`)) part.classList.add("lit");
  };

  const place = (event) => {
    const gap = 14, box = tip.getBoundingClientRect();
    const x = Math.min(event.clientX + gap, innerWidth - box.width - 6);
    const above = event.clientY - box.height - gap;
    tip.style.left = `${Math.max(6, x)}px`;
    tip.style.top = `${above > 6 ? above : event.clientY + gap}px`;
  };

  const point = (event) => {
    const said = event.target.closest("[data-tip]");
    tip.hidden = !said;
    if (said) {
      tip.textContent = said.dataset.tip;
      place(event);
    }
    const of = event.target.closest("[data-trial]");
    light(of ? of.dataset.trial : pinned);
  };
  document.addEventListener("pointerover", point);
  document.addEventListener("pointermove", (event) => { if (!tip.hidden) place(event); });
  document.addEventListener("pointerleave", () => { tip.hidden = true; light(pinned); });
  document.addEventListener("click", (event) => {
    const of = event.target.closest("[data-trial]");
    pinned = of && of.dataset.trial !== pinned ? of.dataset.trial : null;
    light(pinned);
  });

  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "") || 0;
    const numbers = !Number.isNaN(Number(a)) && !Number.isNaN(Number(b));
    return numbers ? Number(a) - Number(b) : a.localeCompare(b);
  };
  const hideTail = (table) => {
    [...table.tBodies[0].rows].forEach((row, place) => row.classList.toggle("tail", place >= FIRST_ROWS));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const falls = head.ariaSort === "ascending" || (head.ariaSort === null && head.className === "score");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.sort;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const order = compare(key(a), key(b));
        return key(a) === "" || key(b) === "" || !falls ? order : -order;
      });
      table.tBodies[0].append(...rows);
      hideTail(table);
    }));
    const count = table.tBodies[0].rows.length;
    if (count > FIRST_ROWS) {
      hideTail(table);
      const more = document.createElement("button");
      more.className = "more";
      more.textContent = `Show all ${count} trials`;
      more.addEventListener("click", () => { table.classList.add("all"); more.remove(); });
      table.after(more);
    }
  }

  const box = document.getElementById("lightbox");
  box.addEventListener("click", () => box.close());
  for (const zoom of document.querySelectorAll(".zoom")) {
    zoom.addEventListener("click", () => {
      box.replaceChildren(zoom.firstElementChild.cloneNode());
      box.showModal();
    });
  }
})();
