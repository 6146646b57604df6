"use strict";
// The candidate table: sort by a column's head, filter by the form; a page of rows is shown at a time, since browsers lay
// out thousands slowly. The panels: drawn when opened, one at a time,
// because browsers keep few WebGL contexts.
(() => {
  const table = document.getElementById("table");
  const form = document.getElementById("filters");
  const body = table.tBodies[0];
  const further = document.getElementById("further");
  const page = Number(table.dataset.page);
  let rows = [...body.rows, ...(document.getElementById("rows")?.content.querySelectorAll("tr") ?? [])];
  let fitting = rows;
  let limit = page;
  const heads = Array.from(table.tHead.rows[0].cells);

  const value = (row, column, kind) => {
    const text = row.cells[column].dataset.v;
    if (kind !== "number") return text.toLowerCase();
    return text === "" ? null : Number(text);
  };

  const sortBy = (column, descending) => {
    const kind = heads[column].dataset.kind;
    const sign = descending ? -1 : 1;
    const keyed = rows.map((row, place) => [value(row, column, kind), place, row]);
    keyed.sort(([a, i], [b, j]) => {
      if (a === b) return i - j;
      if (a === null || a === "") return 1; // what is missing stands last, either way
      if (b === null || b === "") return -1;
      return sign * (a < b ? -1 : 1);
    });
    rows = keyed.map(([, , row]) => row);
    filter();
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  };

  const FIRST_DESCENDING = new Set([2, 3, 4, 5]);
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sortBy(column, now ? now === "ascending" : FIRST_DESCENDING.has(column));
    });
  });

  const filter = () => {
    const fields = form.elements;
    const text = fields.text.value.trim().toLowerCase();
    const elements = fields.holds.value.split(/[^A-Za-z]+/).filter(Boolean);
    const tc = Number(fields.tc.value) || 0;
    fitting = rows.filter((row) => {
      const data = row.dataset;
      const present = new Set(data.elements.split(" "));
      return (
        (!fields.status.value || data.status === fields.status.value) &&
        Number(data.tc) >= tc &&
        (!fields.agree.checked || data.agree === "1") &&
        (!fields.safe.checked || data.safe === "1") &&
        elements.every((element) => present.has(element)) &&
        (!text || [1, 9, 11].some((cell) => row.cells[cell].dataset.v.toLowerCase().includes(text)))
      );
    });
    limit = page;
    show();
  };
  const show = () => {
    body.replaceChildren(...fitting.slice(0, limit));
    const left = fitting.length - limit;
    further.hidden = left <= 0;
    further.textContent = `Show ${Math.min(page, left)} more`;
    const what = left > 0 ? `the first ${limit} of ${fitting.length} that fit shown` : `${fitting.length} of ${rows.length} shown`;
    document.getElementById("shown").textContent = what;
  };
  further.addEventListener("click", () => {
    limit += page;
    show();
  });
  form.addEventListener("input", filter);
  form.addEventListener("change", filter);
  filter();

  const panels = Array.from(document.querySelectorAll("details.panel"));
  let plotly = null; // a promise: Plotly lies in the page compressed, and is unpacked when a panel first needs it
  const unpack = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (char) => char.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };
  const draw = async (panel) => {
    plotly ??= unpack();
    await plotly;
    if (!panel.open) return;
    for (const place of panel.querySelectorAll(".plot")) {
      const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
      Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: "hover" });
    }
  };
  panels.forEach((panel) =>
    panel.addEventListener("toggle", () => {
      if (!panel.open) {
        panel.querySelectorAll(".plot").forEach((place) => window.Plotly?.purge(place));
        return;
      }
      panels.forEach((other) => { if (other !== panel) other.open = false; });
      draw(panel);
    })
  );
  const openPanel = () => {
    const panel = panels.find((one) => `#${one.id}` === location.hash);
    if (!panel) return;
    panel.open = true;
    panel.scrollIntoView();
  };
  window.addEventListener("hashchange", openPanel);
  table.addEventListener("click", (event) => {
    if (event.target.closest("a[data-panel]")?.hash === location.hash) openPanel();
  });
  openPanel();
})();
