"use strict";
// Text from the record reaches the page through textContent only.
const data = JSON.parse(document.getElementById("data").textContent);
const filter = document.getElementById("filter"), order = document.getElementById("order");
const list = document.getElementById("list"), rows = document.getElementById("rows");
const steps = (path, name) => path[name].filter((value) => value !== null);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / (values.length || 1);
const ORDERS = {
  feature: (path) => path.feature[0],
  mse: (path) => (steps(path, "mse").length ? mean(steps(path, "mse")) : Infinity),
  score: (path) => (steps(path, "score").length ? -mean(steps(path, "score")) : Infinity),
  length: (path) => -path.feature.length,
};

function cell(row, text, share) {
  const made = row.insertCell();
  made.textContent = text === null || text === undefined ? "" : String(text);
  if (share !== null && share !== undefined) {
    made.className = "bar";
    made.style.backgroundSize = Math.round(100 * Math.max(0, Math.min(1, share))) + "% 3px";
  }
  return made;
}

function show(path) {
  rows.replaceChildren();
  path.feature.forEach((feature, i) => {
    const row = rows.insertRow(), layer = data.layers[i], link = path.link ? path.link[i] : null;
    cell(row, layer);
    const name = cell(row, link ? "" : feature);
    if (link) {
      const anchor = document.createElement("a");
      anchor.href = link;
      anchor.rel = "noreferrer";
      anchor.textContent = String(feature);
      name.append(anchor);
    }
    cell(row, path.mse[i]);
    cell(row, path.score[i], path.score[i]);
    cell(row, path.cosine[i], path.cosine[i]);
    cell(row, path.tokens ? path.tokens[i] : "");
  });
}

function fits(path, wanted) {
  if (!wanted) return true;
  if (/^\d+$/.test(wanted)) return path.feature.includes(Number(wanted));
  return (path.tokens || []).some((text) => text && text.toLowerCase().includes(wanted));
}

function fill() {
  const key = ORDERS[order.value], wanted = filter.value.trim().toLowerCase();
  const chosen = data.paths.filter((path) => fits(path, wanted)).sort((a, b) => key(a) - key(b));
  list.replaceChildren();
  for (const path of chosen) {
    const option = document.createElement("option"), scores = steps(path, "score");
    const parts = ["feature " + path.feature[0], path.feature.length + " layers"];
    if (steps(path, "mse").length) parts.push("MSE " + mean(steps(path, "mse")).toPrecision(2));
    if (scores.length) parts.push("score " + mean(scores).toFixed(2));
    option.textContent = parts.join(", ");
    option.value = String(path.feature[0]);
    list.append(option);
  }
  if (chosen.length) {
    list.selectedIndex = 0;
    show(chosen[0]);
  } else rows.replaceChildren();
}

list.addEventListener("change", () => show(data.paths.find((path) => String(path.feature[0]) === list.value)));
filter.addEventListener("input", fill);
order.addEventListener("change", fill);
fill();
