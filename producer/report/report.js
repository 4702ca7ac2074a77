"use strict";
(() => {
  const $ = (query, root = document) => root.querySelector(query);
  const $$ = (query, root = document) => [...root.querySelectorAll(query)];
  const grid = $("#cards");
  const tools = $(".tools");
  const input = $("input", tools);
  const why = $(".why select");
  const pages = $(".pages");
  const chooser = $("select", pages);
  const number = (value) => value.toLocaleString("en");

  // Cards in templates are parsed but inert: their pictures are decoded only when a page puts them into the document.
  const cards = $$(":scope > .card, :scope > template.later", grid).map((node) =>
    node.matches("template") ? $(".card", node.content) : node
  );
  const size = cards.length > Number(document.body.dataset.live) ? Number(document.body.dataset.page) : cards.length;
  const state = { outcome: "", reason: "", page: 0 };
  let found = cards;

  const fold = (text) => text.normalize("NFC").toLowerCase().replaceAll("ё", "е");
  const count = (outcome) => cards.filter((card) => !outcome || card.dataset.outcome === outcome).length;

  function search() {
    const words = fold(input.value).split(/\s+/).filter(Boolean);
    found = cards.filter(
      ({ dataset }) =>
        (!state.outcome || dataset.outcome === state.outcome) &&
        (!state.reason || dataset.reasons.split(" ").includes(state.reason)) &&
        words.every((word) => dataset.search.includes(word))
    );
    state.page = 0;
    show();
  }

  function show() {
    const last = Math.max(0, Math.ceil(found.length / (size || 1)) - 1);
    state.page = Math.min(Math.max(0, state.page), last);
    const from = state.page * size;
    const shown = found.slice(from, from + size);
    grid.replaceChildren(...shown);
    const range = last ? `${number(from + 1)}–${number(from + shown.length)} of ` : "";
    const text = `${range}${number(found.length)} ${found.length === 1 ? "item" : "items"}`;
    $(".count").textContent = text;
    $(".empty").hidden = found.length > 0;
    pages.hidden = last === 0;
    if (chooser.length !== last + 1) {
      chooser.replaceChildren(...Array.from({ length: last + 1 }, (_, page) => new Option(number(page + 1), page)));
    }
    chooser.value = state.page;
    $("span", pages).textContent = `of ${number(last + 1)}`;
    $("[data-step='-1']", pages).disabled = state.page === 0;
    $("[data-step='1']", pages).disabled = state.page === last;
    for (const button of $$("[data-filter]", tools)) {
      button.setAttribute("aria-pressed", String(button.dataset.filter === state.outcome));
    }
  }

  function turnTo(page) {
    state.page = page;
    show();
    tools.scrollIntoView();
    grid.focus({ preventScroll: true });
  }

  function reset() {
    input.value = "";
    why.value = "";
    state.reason = "";
    state.outcome = "";
    search();
  }

  function listReasons() {
    const reasons = new Map();
    for (const card of cards) {
      for (const chip of $$(".chip", card)) {
        const known = reasons.get(chip.title) || { title: chip.textContent, count: 0 };
        reasons.set(chip.title, { ...known, count: known.count + 1 });
      }
    }
    const sorted = [...reasons].sort((a, b) => b[1].count - a[1].count);
    why.append(...sorted.map(([word, { title, count: times }]) => new Option(`${title} (${number(times)})`, word)));
    why.parentElement.hidden = sorted.length === 0;
  }

  // --- the picture, larger

  const box = $("dialog");
  let turn = () => {};

  function enlarge(pic) {
    const card = pic.closest(".card");
    const pics = $$("a.pic, button.pic", card);
    let at = pics.indexOf(pic);
    turn = (step) => {
      at = (at + step + pics.length) % pics.length;
      const from = pics[at];
      const picture = $("img", from);
      const image = $("img", box);
      image.src = picture.src;
      image.alt = picture.alt;
      $("p", box).textContent = `${$("h3", card).textContent} · ${from.dataset.label}`;
      const link = $("a", box);
      link.hidden = !from.href;
      link.href = from.href || "";
      for (const button of $$("[data-turn]", box)) button.hidden = pics.length < 2;
    };
    turn(0);
    box.showModal();
  }

  grid.addEventListener("click", (event) => {
    const choice = event.target.closest("[data-decide]");
    if (choice) decide(choice);
    const pic = event.target.closest("a.pic, button.pic");
    if (!pic || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    enlarge(pic);
  });
  box.addEventListener("click", (event) => {
    const button = event.target.closest("[data-turn]");
    if (button) turn(Number(button.dataset.turn));
    else if (event.target === box || event.target.matches(".stage")) box.close();
  });

  // --- decisions: kept in the browser, and saved as lists that --manifest takes

  const memory = `vitrina ${document.body.dataset.job}`;
  const decided = new Map();
  try {
    for (const [id, choice] of JSON.parse(localStorage.getItem(memory) || "[]")) decided.set(id, choice);
  } catch {
    // A browser may keep nothing for a file from the disk: the decisions then last as long as the page.
  }

  function showDecisions() {
    for (const card of cards) {
      for (const button of $$("[data-decide]", card)) {
        button.setAttribute("aria-pressed", String(decided.get(card.id) === button.dataset.decide));
      }
    }
    for (const choice of ["keep", "redo"]) {
      const times = chosen(choice).length;
      $(`[data-count="${choice}"]`).textContent = number(times);
      $(`[data-save="${choice}"]`).disabled = times === 0;
    }
    $(".decided").hidden = decided.size === 0;
  }

  const chosen = (choice) => cards.filter((card) => decided.get(card.id) === choice);

  function decide(button) {
    const { id } = button.closest(".card");
    if (decided.get(id) === button.dataset.decide) decided.delete(id);
    else decided.set(id, button.dataset.decide);
    try {
      localStorage.setItem(memory, JSON.stringify([...decided]));
    } catch {
      // As above.
    }
    showDecisions();
  }

  function table(choice) {
    const rows = chosen(choice).map((card) => JSON.parse(card.dataset.row));
    const wanted = choice === "redo" ? ["box", "points", "mask"] : [];
    const names = [...new Set(["key", ...rows.flatMap(Object.keys), ...wanted])];
    const cell = (value) => {
      let text = typeof value === "object" ? JSON.stringify(value) : String(value);
      // A spreadsheet would run it; `--manifest` reads it without the apostrophe.
      if (typeof value === "string" && /^'*[=+\-@\t\r]/.test(text)) text = `'${text}`;
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [names, ...rows.map((row) => names.map((name) => row[name] ?? ""))]
      .map((line) => `${line.map(cell).join(",")}\r\n`)
      .join("");
  }

  function save(choice) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([table(choice)], { type: "text/csv" }));
    link.download = choice === "keep" ? "approved.csv" : "make-again.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // --- listeners

  let pending = 0;
  input.addEventListener("input", () => {
    clearTimeout(pending);
    pending = setTimeout(search, 120);
  });
  why.addEventListener("change", () => {
    state.reason = why.value;
    search();
  });
  tools.addEventListener("click", (event) => {
    const button = event.target.closest("[data-filter]");
    if (!button) return;
    state.outcome = button.dataset.filter;
    search();
  });
  $(".empty button").addEventListener("click", reset);
  pages.addEventListener("click", (event) => {
    const button = event.target.closest("[data-step]");
    if (button) turnTo(state.page + Number(button.dataset.step));
  });
  chooser.addEventListener("change", () => turnTo(Number(chooser.value)));
  document.addEventListener("keydown", (event) => {
    if (box.open) {
      if (event.key === "ArrowLeft") turn(-1);
      if (event.key === "ArrowRight") turn(1);
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/" && !event.target.matches("input, select, textarea")) {
      event.preventDefault();
      input.focus();
      input.select();
    } else if (event.key === "Escape" && event.target === input) {
      input.value = "";
      search();
    }
  });

  for (const button of $$("[data-filter]", tools)) {
    const times = count(button.dataset.filter);
    $("b", button).textContent = number(times);
    button.hidden = times === 0 && button.dataset.filter !== "";
  }
  for (const group of cards.flatMap((card) => $$(".decide", card))) group.hidden = false;
  $(".decided").addEventListener("click", ({ target }) => {
    if (target.dataset.save) save(target.dataset.save);
  });
  showDecisions();
  listReasons();
  tools.hidden = cards.length < 2;
  show();
  const linked = cards.findIndex((card) => location.hash === `#${card.id}`);
  if (linked >= 0) {
    state.page = Math.floor(linked / size);
    show();
    cards[linked].scrollIntoView();
  }
})();
