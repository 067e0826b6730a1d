// Puts the monitor's words into the page, and says so when none come any more: a dead server cannot.
"use strict";
(() => {
  const SILENT_MS = 5000; // no word from the monitor for so long: out of date
  const OLD_MS = 15000; // an evaluation older than this says nothing any more
  const CHARTS_MS = 10000;
  const POLL_MS = 2000;
  const OUTDATED = "OUT OF DATE";
  const root = document.documentElement;
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  const title = document.title;

  let view = null; // the last that came
  let heard = clocks(); // when anything came
  let viewed = heard; // when the view came
  let outdated = false;
  let told = {}; // verdicts that a screen reader was told
  let source = null;
  let polling = 0;

  // A suspended machine stops one of the clocks, a corrected one moves the other: the longer time counts.
  function clocks() { return [performance.now(), Date.now()]; }
  function since(then) { return Math.max(performance.now() - then[0], Date.now() - then[1]); }

  function put(element, words) { if (element.textContent !== words) element.textContent = words; }

  function badge(element, state) {
    if (element.dataset.state === state) return;
    element.dataset.state = state;
    put(element.querySelector(".badge-text"), state);
  }

  function stateOf(name) { return name === "*" ? view.overall : view.states[name] || "UNKNOWN"; }

  function show() {
    root.classList.remove("waiting");
    for (const each of all("[data-text]")) {
      const words = view.texts[each.dataset.text];
      if (words !== undefined) put(each, words);
    }
    for (const each of all("[data-badge]")) badge(each, stateOf(each.dataset.badge));
    for (const each of all("[data-meter]")) {
      each.querySelector(".used").setAttribute("width", String((view.meters[each.dataset.meter] || 0) * 100));
    }
    for (const body of all("[data-rows]")) rows(body, view.rows[body.dataset.rows] || []);
    for (const list of all("[data-broken]")) broken(list);
    document.title = title.replace(/^[A-Z ]+ ·/, `${stateOf(badgeOfPage())} ·`);
    tell();
  }

  function badgeOfPage() {
    const first = document.querySelector("h1 [data-badge]");
    return first ? first.dataset.badge : "*";
  }

  function rows(body, wanted) {
    if (!wanted.length) {
      if (body.querySelector(".empty")) return;
      const cell = document.createElement("td");
      cell.colSpan = Number(body.dataset.columns);
      cell.className = "empty";
      cell.textContent = body.dataset.empty;
      const row = document.createElement("tr");
      row.append(cell);
      body.replaceChildren(row);
      return;
    }
    if (body.querySelector(".empty")) body.replaceChildren();
    while (body.rows.length > wanted.length) body.lastElementChild.remove();
    wanted.forEach((words, index) => {
      const row = body.rows[index] || body.insertRow();
      words.forEach((word, column) => {
        let cell = row.cells[column];
        if (!cell) {
          cell = document.createElement(column ? "td" : "th");
          if (!column) cell.scope = "row";
          row.append(cell);
        }
        put(cell, word);
      });
    });
  }

  function broken(list) {
    const wanted = view.broken;
    while (list.children.length > wanted.length) list.lastElementChild.remove();
    wanted.forEach((each, index) => {
      let item = list.children[index];
      if (!item) {
        item = document.createElement("li");
        item.append(document.createElement("strong"), " ", document.createElement("span"));
        list.append(item);
      }
      put(item.querySelector("strong"), each.what);
      put(item.querySelector("span"), each.text);
    });
    list.hidden = !wanted.length;
    for (const calm of all("[data-calm]")) calm.hidden = wanted.length > 0;
  }

  // Only changes of verdicts are read aloud.
  function tell() {
    const changed = Object.entries(view.states).filter(([name, state]) => told[name] && told[name] !== state);
    told = { ...view.states };
    if (changed.length) {
      put(document.getElementById("say"), changed.map(([name, state]) => `${name} is ${state}.`).join(" "));
    }
  }

  function arrived(next) {
    const names = Object.keys(next.states).join();
    const reload = view !== null && Object.keys(view.states).join() !== names;
    view = next;
    heard = viewed = clocks();
    if (reload) location.reload(); // a collection came or went
    check();
  }

  function why() {
    const silent = since(heard);
    if (silent > SILENT_MS) return `No word from the monitor for ${Math.round(silent / 1000)} s.`;
    if (view === null || view.evaluated_age_seconds === null) return "";
    const age = view.evaluated_age_seconds * 1000 + since(viewed);
    return age > OLD_MS ? `The last evaluation is ${Math.round(age / 1000)} s old.` : "";
  }

  function check() {
    const reason = why();
    const was = outdated;
    outdated = reason !== "";
    document.getElementById("outdated").hidden = !outdated;
    root.classList.toggle("outdated", outdated);
    if (outdated) {
      put(document.getElementById("outdated-why"), reason);
      for (const each of all(".badge")) badge(each, OUTDATED);
      document.title = title.replace(/^[A-Z ]+ ·/, `${OUTDATED} ·`);
      if (!was) {
        told = Object.fromEntries(Object.keys(told).map((name) => [name, OUTDATED]));
        put(document.getElementById("say"), "This page is out of date.");
      }
    } else if (view !== null) show();
  }

  function open() {
    if (source || document.hidden) return;
    source = new EventSource("/page/events");
    source.onmessage = (event) => arrived(JSON.parse(event.data));
    source.addEventListener("beat", () => { heard = clocks(); check(); });
    source.onerror = () => {
      if (source && source.readyState === EventSource.CLOSED) { close(); poll(); } // refused: too many are open
    };
  }

  function close() {
    if (source) source.close();
    source = null;
  }

  function poll() {
    if (polling) return;
    let left = 15; // then the stream is tried again
    polling = setInterval(async () => {
      try {
        const answer = await fetch("/page/view", { cache: "no-store" });
        if (answer.ok) arrived(await answer.json());
      } catch { /* what is not heard is out of date soon */ }
      if (--left <= 0) { clearInterval(polling); polling = 0; open(); }
    }, POLL_MS);
  }

  async function charts() {
    if (document.hidden || outdated) return;
    for (const place of all("[data-chart]")) {
      try {
        const answer = await fetch(place.dataset.chart, { cache: "no-store" });
        if (!answer.ok) continue;
        const drawn = new DOMParser().parseFromString(await answer.text(), "image/svg+xml").documentElement;
        if (drawn.localName === "svg") place.replaceChildren(document.importNode(drawn, true));
      } catch { return; }
    }
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) close(); // a tab that nobody sees holds no connection
    else { check(); open(); }
  });
  window.addEventListener("pageshow", () => { check(); open(); });
  window.addEventListener("pagehide", close);
  setInterval(check, 500);
  setInterval(charts, CHARTS_MS);
  open();
})();
