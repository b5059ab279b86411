// Without this script the page shows the calibrated threshold; the script runs the slider, the gallery and the viewer.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const section = byId("threshold");
  const [low, high, calibrated] = ["low", "high", "threshold"].map((name) => Number(section.dataset[name]));
  const STEPS = 1000;
  const MAX_IN_STRIP = 12;

  const cards = [...document.querySelectorAll(".card")].map((element) => ({
    element,
    key: element.dataset.key,
    type: element.dataset.type,
    score: Number(element.dataset.score),
    defective: element.classList.contains("defective"),
    tag: element.querySelector(".tag"),
    outcome: null,
  }));
  const scores = [...new Set(cards.map((card) => card.score))].sort((one, other) => one - other);
  const rugs = [...document.querySelectorAll(".rug")];
  let threshold = calibrated;

  const measured = (value) => {
    const size = Math.abs(value);
    if (value !== 0 && size < 1e-3) return value.toExponential(3).replace(/-(\d)$/, "-0$1");
    return size < 1e4 ? value.toFixed(4) : String(Number(value.toPrecision(6)));
  };
  const percent = (share) => `${(100 * share).toFixed(1).replace(/\.0$/, "")}\u00a0%`;
  const share = (part, whole) => (whole ? percent(part / whole) : "–");
  const position = (score) => Math.min(Math.max((score - low) / (high - low), 0), 1);
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  const breakable = (path) => path.split(/(?<=\/)/).flatMap((part, index) => (index ? [make("wbr"), part] : [part]));

  // --- The outcome of each image at the threshold -----------------------------------------------------------------
  const OUTCOMES = {
    rejected: "tag tag-bad",
    missed: "tag tag-miss",
    "false alarm": "tag tag-false-alarm",
    passed: "tag tag-good",
  };
  const outcomeOf = (card) => {
    const rejected = card.score > threshold;
    if (card.defective) return rejected ? "rejected" : "missed";
    return rejected ? "false alarm" : "passed";
  };
  const isMistake = (outcome) => outcome === "missed" || outcome === "false alarm";

  function judge() {
    const counts = { rejected: 0, missed: 0, "false alarm": 0, passed: 0 };
    for (const card of cards) {
      const outcome = outcomeOf(card);
      counts[outcome] += 1;
      if (outcome === card.outcome) continue;
      card.outcome = outcome;
      card.tag.textContent = outcome;
      card.tag.className = OUTCOMES[outcome];
    }
    return counts;
  }

  // --- The slider --------------------------------------------------------------------------------------------------
  const slider = byId("slider");
  const atCalibrated = Math.round(STEPS * position(calibrated));

  function show(counts) {
    const { rejected: found, missed, "false alarm": alarms, passed } = counts;
    const text = {
      at: measured(threshold),
      state: threshold === calibrated ? "calibrated" : "tried",
      recall: share(found, found + missed),
      found,
      precision: share(found, found + alarms),
      alarms,
      "alarm-rate": share(alarms, alarms + passed),
      missed,
    };
    for (const [id, value] of Object.entries(text)) byId(id).textContent = value;
    const status = `Threshold ${text.at}: recall ${text.recall}, ${missed} missed, ${alarms} false alarms.`;
    slider.setAttribute("aria-valuetext", status);
    byId("warning").hidden = threshold === calibrated;
    byId("reset").disabled = threshold === calibrated;
    byId("lower").disabled = !scores.some((score) => score <= threshold);
    byId("higher").disabled = !scores.some((score) => score > threshold);
    for (const rug of rugs) {
      const above = cards.filter((card) => card.type === rug.dataset.type && card.score > threshold).length;
      rug.querySelector(".rug-above").textContent = above;
    }
    moveDots(counts);
    announceLater(status);
  }

  function moveDots({ rejected: found, missed, "false alarm": alarms, passed }) {
    const put = (id, x, y) => {
      const dot = byId(id);
      if (!dot) return;
      const shown = threshold !== calibrated && Number.isFinite(x) && Number.isFinite(y);
      dot.setAttribute("visibility", shown ? "visible" : "hidden");
      if (!shown) return;
      const square = Number(dot.ownerSVGElement.dataset.square);
      dot.setAttribute("cx", x * square);
      dot.setAttribute("cy", (1 - y) * square);
    };
    put("dot-roc", alarms / (alarms + passed), found / (found + missed));
    put("dot-precision", found / (found + missed), found / (found + alarms));
  }

  let announcing = 0;
  function announceLater(status) {
    clearTimeout(announcing);
    if (threshold !== calibrated || byId("announcement").textContent) announcing = setTimeout(() => (byId("announcement").textContent = status), 400);
  }

  function moveLines() {
    const x = 100 * position(threshold);
    for (const line of document.querySelectorAll(".cut")) {
      line.setAttribute("x1", `${x}%`);
      line.setAttribute("x2", `${x}%`);
    }
    document.querySelector("#passed rect").setAttribute("width", `${x}%`);
    document.querySelector("#rejected rect").setAttribute("x", `${x}%`);
  }

  function setThreshold(value, { moveThumb = true } = {}) {
    threshold = value;
    if (moveThumb) slider.value = Math.round(STEPS * position(value));
    moveLines();
    const counts = judge();
    show(counts);
    fillStrip("misses", "misses-count", "missed", (one, other) => one.score - other.score);
    fillStrip("false-alarms", "alarms-count", "false alarm", (one, other) => other.score - one.score);
    filter();
  }

  function fillStrip(listId, countId, outcome, order) {
    const chosen = cards.filter((card) => card.outcome === outcome).sort(order);
    const list = byId(listId);
    const signature = chosen.map((card) => card.key).join("\n");
    if (list.signature === signature) return; // do not decode portable photos again while the slider moves
    list.signature = signature;
    byId(countId).textContent = chosen.length ? `(${chosen.length})` : "";
    const shown = chosen.slice(0, MAX_IN_STRIP).map((card) => stripItem(card, measured(card.score)));
    if (!chosen.length) shown.push(make("li", { className: "muted", textContent: "none at this threshold" }));
    if (chosen.length > MAX_IN_STRIP) {
      const more = make("button", { type: "button", className: "more", textContent: `${chosen.length - MAX_IN_STRIP} more` });
      more.addEventListener("click", () => {
        byId("outcome").value = outcome;
        byId("type").value = "";
        filter();
        byId("gallery").scrollIntoView();
        byId("outcome").focus();
      });
      shown.push(make("li", {}, more));
    }
    list.replaceChildren(...shown);
  }

  function stripItem(card, note) {
    const photo = make("img", { src: card.element.querySelector("img").src, alt: "", loading: "lazy" });
    const button = make("button", { type: "button" }, photo, make("span", {}, ...breakable(card.key), make("small", { textContent: note })));
    button.addEventListener("click", () => open(card, button));
    return make("li", {}, button);
  }

  slider.addEventListener("input", () => {
    const step = Number(slider.value);
    const value = step === atCalibrated ? calibrated : low + (step / STEPS) * (high - low);
    setThreshold(value, { moveThumb: false });
  });
  slider.addEventListener("change", () => sort());
  const jump = (value) => {
    setThreshold(value);
    sort();
  };
  byId("reset").addEventListener("click", () => {
    jump(calibrated);
    slider.focus();
  });
  // A part whose score equals the threshold passes, so each step rejects one image more or fewer.
  byId("higher").addEventListener("click", () => jump(scores.find((score) => score > threshold)));
  byId("lower").addEventListener("click", () => {
    const passed = scores.filter((score) => score <= threshold);
    jump(passed.length > 1 ? passed[passed.length - 2] : low);
  });

  // --- The gallery -------------------------------------------------------------------------------------------------
  const list = byId("cards");
  const byName = new Intl.Collator("en", { numeric: true }).compare;
  const rank = { missed: 0, "false alarm": 1, rejected: 2, passed: 2 };
  const away = (card) => Math.abs(card.score - threshold) * (isMistake(card.outcome) ? -1 : 1);
  const ORDERS = {
    worst: (one, other) => rank[one.outcome] - rank[other.outcome] || away(one) - away(other),
    high: (one, other) => other.score - one.score,
    low: (one, other) => one.score - other.score,
    name: () => 0,
    type: (one, other) => byName(one.type, other.type) || other.score - one.score,
  };
  let order = [...cards];

  function sort() {
    const compare = ORDERS[byId("order").value];
    order = [...cards].sort((one, other) => compare(one, other) || byName(one.key, other.key));
    list.append(...order.map((card) => card.element));
  }

  function filter() {
    const type = byId("type").value;
    const outcome = byId("outcome").value;
    let shown = 0;
    for (const card of cards) {
      const fits = outcome === "mistake" ? isMistake(card.outcome) : !outcome || card.outcome === outcome;
      card.element.hidden = !(fits && (!type || card.type === type));
      shown += card.element.hidden ? 0 : 1;
    }
    const all = shown === cards.length ? "" : ` of ${cards.length}`;
    const count = `${shown}${all} ${cards.length === 1 ? "image" : "images"}`;
    if (byId("count").textContent !== count) byId("count").textContent = count;
    byId("nothing").hidden = shown > 0;
  }

  byId("order").addEventListener("change", sort);
  for (const id of ["type", "outcome"]) byId(id).addEventListener("change", filter);
  byId("controls").addEventListener("submit", (event) => event.preventDefault());

  // --- The viewer --------------------------------------------------------------------------------------------------
  const viewer = byId("viewer");
  let shownCard = null;
  let opener = null;
  let openedCard = null;

  const overlay = (card, ...paths) => {
    const svg = card.element.querySelector("svg").cloneNode(false);
    svg.append(...paths);
    return svg;
  };
  const path = (className, d) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", "path");
    element.setAttribute("class", className);
    element.setAttribute("d", d);
    return element;
  };
  const photoOf = (card, className = "") => {
    const image = card.element.querySelector("img");
    return make("img", { src: image.src, alt: "", className, width: image.getAttribute("width"), height: image.getAttribute("height") });
  };

  const NAMES = { photo: "Image", map: "Anomaly map", mask: "Mask", outline: "Outline of the pixels above the threshold" };

  function fill(card) {
    const { map, truth, peak, above } = card.element.dataset;
    const outline = card.element.querySelector(".outline").getAttribute("d");
    const unknown = truth === "unknown";
    const mask = overlay(card, ...(unknown ? [] : [path("truth", truth)]));
    mask.setAttribute("class", unknown ? "unknown" : "black");
    const panes = {
      photo: [photoOf(card)],
      map: [photoOf(card, "gray"), make("img", { src: map, alt: "", className: "colormap" })],
      mask: [mask],
      outline: [photoOf(card), overlay(card, path("seam", outline), path("outline", outline))],
    };
    for (const pane of viewer.querySelectorAll(".pane")) {
      pane.setAttribute("aria-label", `${NAMES[pane.dataset.view]} of ${card.key}`);
      pane.replaceChildren(...panes[pane.dataset.view]);
    }
    const image = card.element.querySelector("img");
    byId("views").classList.toggle("wide", image.getAttribute("width") > 2 * image.getAttribute("height"));
    byId("viewer-title").replaceChildren(...breakable(card.key));
    const tag = card.tag.cloneNode(true);
    byId("viewer-line").replaceChildren(`${card.type}, score ${measured(card.score)}, threshold ${measured(threshold)} `, tag);
    byId("peak").textContent = `highest ${measured(Number(peak))}`;
    byId("truth-note").textContent = unknown ? "not known" : truth ? "" : card.defective ? "empty" : "no defect";
    byId("above").textContent = percent(Number(above));
    fillClassification(card);
  }

  function fillClassification(card) {
    const box = byId("named");
    box.hidden = !card.element.dataset.classification;
    if (box.hidden) return;
    const { named, confidence, neighbours } = JSON.parse(card.element.dataset.classification);
    const right = named === card.type;
    const verdict = make("span", { className: right ? "tag tag-good" : "tag tag-miss", textContent: right ? "correct" : "wrong" });
    const near = neighbours.flatMap(({ key, similarity }) => {
      const other = cards.find((candidate) => candidate.key === key);
      return other ? [stripItem(other, `${other.type}, similarity ${similarity.toFixed(3)}`)] : [];
    });
    box.replaceChildren(
      make("p", {}, `Classified as ${named} with the labels of the other images, confidence ${percent(confidence)} `, verdict),
      make("ol", { className: "strip" }, ...near),
    );
  }

  function open(card, from) {
    shownCard = card;
    fill(card);
    const sequence = order.filter((candidate) => !candidate.element.hidden);
    const at = sequence.indexOf(card);
    byId("previous").disabled = at <= 0;
    byId("next").disabled = at < 0 || at === sequence.length - 1;
    if (viewer.open) return;
    [opener, openedCard] = [from, card];
    viewer.showModal();
    byId("close").focus();
  }

  function step(by) {
    const sequence = order.filter((candidate) => !candidate.element.hidden);
    const next = sequence[sequence.indexOf(shownCard) + by];
    if (next) open(next);
  }

  for (const card of cards) card.element.querySelector(".open").addEventListener("click", (event) => open(card, event.currentTarget));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  viewer.addEventListener("close", () => {
    const moved = shownCard !== openedCard && !shownCard.element.hidden;
    (moved ? shownCard.element.querySelector(".open") : opener)?.focus();
  });

  for (const control of document.querySelectorAll("#slider, #controls select")) control.disabled = false;
  setThreshold(calibrated);
})();
