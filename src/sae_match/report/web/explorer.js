// Views and navigation. The address after # names the feature that is shown, so that it can be linked to.
const byId = (id) => d3.select(document.getElementById(id));
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const MOST_LISTED = 200, DRAWN = 6;
const MEANING = {
  persist: "parent and child are each other’s most similar feature",
  split: "best parent of two or more children", merge: "best child of two or more parents",
  birth: "no parent above the threshold", death: "no child above the threshold",
};
const data = read("data"), EVENTS = read("names");
const main = byId("main"), list = byId("list");
let graph, current = null, floor = -Infinity, results = [], searches = 0;

function button(place, text, action) {
  return place.append("button").attr("type", "button").text(text).on("click", action);
}

function saveCsv(name, rows) {
  const url = URL.createObjectURL(new Blob([`${d3.csvFormat(rows)}\n`], { type: "text/csv" }));
  const anchor = byId("main").append("a").attr("href", url).attr("download", name);
  anchor.node().click();
  anchor.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const saved = (value) => Number.isNaN(value) ? "" : Number(value.toPrecision(4));

function edgeRow(edge) {
  const { source, target, flags } = graph.edges, row = {
    layer: graph.layer(source[edge]), feature: graph.nodes.feature[source[edge]],
    layer_to: graph.layer(target[edge]), feature_to: graph.nodes.feature[target[edge]],
  };
  for (const name of ["similarity", "coactivation", "deactivation"]) {
    if (graph.edges[name]) row[name] = saved(graph.edges[name][edge]);
  }
  return { ...row, best_child: Boolean(flags[edge] & 1), best_parent: Boolean(flags[edge] & 2) };
}

function nodeRow(node) {
  return {
    layer: graph.layer(node), feature: graph.nodes.feature[node], firing_rate: saved(graph.nodes.rate[node]),
    ...Object.fromEntries(EVENTS.map((event) => [event, graph.events(node).includes(event)])),
    tokens: graph.topTokens(node).join(" "),
  };
}

const called = (node) => graph.topTokens(node).map(shown).join(" · ");

function badges(place, node) {
  for (const event of graph.events(node)) {
    place.append("span").attr("class", `badge ${event}`).attr("title", MEANING[event]).text(event);
  }
}

function marks(place, node) {
  for (const event of graph.events(node).filter((one) => MARKS[one])) {
    place.append("span").attr("class", `letter ${event}`).attr("title", event).text(MARKS[event]);
  }
}

// -- the list of features ------------------------------------------------------------------------------------------

async function search() {
  const number = ++searches, query = byId("query").property("value"), layer = byId("layer").property("value");
  const found = await graph.search(query, layer === "" ? null : Number(layer), byId("event").property("value"));
  if (number !== searches) return; // a later one has begun
  const order = byId("order").property("value"), rate = (node) => graph.nodes.rate[node] || 0;
  if (order === "rate") found.sort((a, b) => rate(b) - rate(a));
  if (order === "id") found.sort((a, b) => a - b);
  results = found;
  const text = query.trim() && !graph.text && !/\d/.test(query) ? " (this record holds no text)" : "";
  byId("count").text(`${d3.format(",")(found.length)} feature${found.length === 1 ? "" : "s"}${text}` +
    (found.length > MOST_LISTED ? `, the first ${MOST_LISTED} listed` : ""));
  list.selectAll("*").remove();
  for (const node of found.slice(0, MOST_LISTED)) {
    const anchor = list.append("li").append("a").attr("href", graph.hash(node)).attr("data-node", node);
    const first = anchor.append("span").attr("class", "first"), rate = graph.nodes.rate[node];
    first.append("b").text(graph.name(node));
    marks(first, node);
    if (!Number.isNaN(rate)) first.append("span").attr("class", "rate").text(percent(rate));
    if (graph.text) anchor.append("span").attr("class", "tokens").text(called(node) || "never fires in this text");
  }
  list.attr("aria-busy", "false");
  markCurrent();
}

function markCurrent() {
  list.selectAll("a")
    .attr("aria-current", function current_() { return Number(this.dataset.node) === current ? "true" : null; });
  byId("home").attr("aria-current", current === null ? "page" : null);
}

function filterTo(layer, event) {
  byId("query").property("value", "");
  byId("layer").property("value", layer);
  byId("event").property("value", event);
  search().then(() => list.select("a").node()?.focus());
}

// -- overview ------------------------------------------------------------------------------------------------------

function showOverview() {
  const steps = data.events.filter((row) => row.role === "adjacent"),
    seeds = data.events.filter((row) => row.role === "seeds");
  for (const row of steps) row.noise = d3.least(seeds, (one) => Math.abs(one.layer - row.layer));
  const head = main.append("div").attr("class", "head");
  head.append("h2").text("What happens to features from layer to layer");
  button(head, "CSV", () => saveCsv("flow_events.csv", data.events));
  const meaning = main.append("dl").attr("class", "meaning");
  for (const event of EVENTS) {
    const one = meaning.append("div");
    one.append("dt").attr("class", `badge ${event}`).text(event);
    one.append("dd").text(MEANING[event]);
  }
  main.append("p").attr("class", "note").text(seeds.length
    ? "Dashed, and in gray beside every count: the same between two seeds of one layer (the nearest one that has two). " +
      "What happens there is the SAEs’ own noise."
    : "This record compares no two seeds of a layer: how much of this is the SAEs’ own noise is not known.");
  drawEvents(main.append("div").attr("class", "charts"), EVENTS, steps, seeds);
  const table = main.append("div").attr("class", "scroll").append("table").attr("class", "events");
  const more = ["threshold", "null_rate"].filter((name) => data.events.some((row) => typeof row[name] === "number"));
  const header = table.append("thead").append("tr");
  const titles = more.map((name) => name === "null_rate" ? "with an edge under the null" : name);
  for (const title of ["layers", "features", ...EVENTS, ...titles]) {
    header.append("th").attr("scope", "col").text(title);
  }
  const body = table.append("tbody");
  for (const row of [...steps, ...seeds]) {
    const line = body.append("tr").attr("class", row.role);
    line.append("th").attr("scope", "row")
      .text(row.role === "seeds" ? `${row.layer}, two seeds` : `${row.layer} → ${row.layer_to}`);
    line.append("td").text(row.features);
    for (const event of EVENTS) {
      const cell = line.append("td"), after = event === "merge" || event === "birth";
      if (row.role === "seeds") cell.text(row[event]);
      else {
        button(cell, row[event], () => filterTo(after ? row.layer_to : row.layer, event)).attr("class", "count")
          .attr("title", `list these features (under the null: ${row[`null_${event}`] ?? "not known"})`);
        cell.node().append(" ");
        if (!row.noise) continue;
        const seed = `two seeds of layer ${row.noise.layer}`;
        cell.append("span").attr("class", "noise").attr("title", seed).text(row.noise[event]);
      }
    }
    for (const name of more) {
      const value = typeof row[name] === "number" ? row[name] : NaN;
      line.append("td").text(name === "null_rate" ? percent(value) : weightNumber(value));
    }
  }
}

// -- one feature ---------------------------------------------------------------------------------------------------

function showFeature(node) {
  const head = main.append("div").attr("class", "head"), link = graph.link(node), rate = graph.nodes.rate[node];
  head.append("h2").text(`Layer ${graph.layer(node)}, feature ${graph.nodes.feature[node]}`);
  badges(head, node);
  if (link) head.append("a").attr("href", link).attr("rel", "noreferrer").text("Neuronpedia ↗");
  showFlow(node);
  const columns = main.append("div").attr("class", "columns");
  const contexts = columns.append("section"), side = columns.append("section");
  showPartners(side, node);
  const facts = side.append("div").attr("class", "facts");
  facts.append("h3").text("Activity");
  const fires = `Fires on ${percent(rate)} of the tokens.`;
  facts.append("p").text(Number.isNaN(rate) ? "Firing rate: not measured in this record." : fires);
  contexts.append("h3").text("Where it is most active");
  graph.detail(node).then((detail) => {
    if (node === current && contexts.node().isConnected) showText(contexts, facts, detail, node);
  });
}

function showFlow(node) {
  const section = main.append("section"), bar = section.append("div").attr("class", "bar");
  const [low, high] = d3.extent(graph.edges.similarity), name = data.facts.similarity?.label || "similarity";
  let flow;
  if (low < high) {
    const label = bar.append("label").text(`${name} at least `), step = (high - low) / 100;
    const range = label.append("input").attr("id", "floor").attr("type", "range").attr("min", low).attr("max", high)
      .attr("step", step)
      .property("value", Math.max(low, floor));
    const output = label.append("output").text(shortNumber(Math.max(low, floor)));
    range.on("input", () => {
      floor = range.property("valueAsNumber") <= low + step / 2 ? -Infinity : range.property("valueAsNumber");
      output.text(shortNumber(Math.max(low, floor)));
      draw();
    });
  }
  button(bar, "CSV of edges", () =>
    saveCsv(`flow_${graph.layer(node)}_${graph.nodes.feature[node]}_edges.csv`, flow.edges.map(edgeRow)));
  button(bar, "CSV of features", () =>
    saveCsv(`flow_${graph.layer(node)}_${graph.nodes.feature[node]}_features.csv`, flow.nodes.map(nodeRow)));
  const place = section.append("div").attr("class", "flow scroll");
  const legend = section.append("p").attr("class", "legend");
  legend.append("span").text(`Width: ${name}. Solid: best both ways; dashed: one way. ` +
    (graph.edges.deactivation ? "Red: causal weight, from 0 to 1. " : "Causal weight: not measured in this record. "));
  const keys = legend.append("span").attr("class", "keys");
  for (const [event, letter] of Object.entries(MARKS)) {
    const one = keys.append("span").attr("class", "key");
    one.append("span").attr("class", `letter ${event}`).text(letter);
    one.append("span").text(event);
  }
  const draw = () => { flow = drawFlow(place, graph, node, DRAWN, floor); };
  draw();
}

function showPartners(place, node) {
  const weights = [["similarity", "similarity"], ["coactivation", "co‑activation"], ["deactivation", "causal weight"]]
    .filter(([name]) => graph.edges[name]);
  place.append("h3").text("Partners");
  const table = place.append("div").attr("class", "scroll").append("table").attr("class", "partners");
  const header = table.append("thead").append("tr");
  for (const text of ["feature", ...(graph.text ? ["tokens"] : []), ...weights.map(([, label]) => label), "best"]) {
    header.append("th").attr("scope", "col").text(text);
  }
  const sides = [["Parents", graph.into(node), "source"], ["Children", graph.out(node), "target"]];
  for (const [title, edges, end] of sides) {
    const body = table.append("tbody");
    body.append("tr").append("th").attr("scope", "rowgroup").attr("colspan", 6)
      .text(edges.length ? title : `${title}: none above the threshold`);
    for (const edge of edges) {
      const row = body.append("tr"), other = graph.edges[end][edge];
      row.append("td").append("a").attr("href", graph.hash(other)).text(graph.name(other));
      if (graph.text) row.append("td").attr("class", "tokens").text(called(other));
      for (const [name] of weights) {
        row.append("td").attr("class", "number").text(weightNumber(graph.edges[name][edge]));
      }
      row.append("td").text(["", "child", "parent", "both"][graph.edges.flags[edge]]);
    }
  }
  for (const [name, label] of [["coactivation", "Co-activation"], ["deactivation", "Causal weight"]]) {
    if (!graph.edges[name]) place.append("p").attr("class", "note").text(`${label}: not measured in this record.`);
  }
}

function showText(contexts, facts, detail, node) {
  if (!detail) {
    contexts.append("p").text(graph.text ? "This page holds contexts only of features with an edge." :
      "This record holds no text: it was made without a language model.");
    return;
  }
  if (!detail.contexts.length) {
    contexts.append("p").text("It does not fire in the text of this record.");
    return;
  }
  contexts.append("p").attr("class", "tokens").text(called(node));
  const items = contexts.append("ol").attr("class", "contexts");
  for (const one of detail.contexts) {
    const item = items.append("li");
    item.append("span").attr("class", "value").text(shortNumber(one.value));
    const text = item.append("span").attr("class", "text").text(one.clipped[0] ? "…" : "");
    for (const piece of one.pieces) {
      text.append("span").attr("class", piece.peak ? "token peak" : "token")
        .style("--share", `${Math.round(100 * piece.share)}%`)
        .attr("title", piece.share ? shortNumber(piece.share * detail.contexts[0].value) : null)
        .text(piece.text.replace(/\n/g, "↵"));
    }
    if (one.clipped[1]) text.append("span").text("…");
  }
  contexts.append("p").attr("class", "note")
    .text(`The strongest places in ${graph.text.windows} windows of ${graph.text.window} tokens, one per window.`);
  drawHistogram(facts, detail.histogram, detail.contexts[0].value);
}

// -- navigation ----------------------------------------------------------------------------------------------------

function show() {
  const named = /^#(\d+)\/(\d+)$/.exec(location.hash);
  current = named && graph.find(Number(named[1]), Number(named[2]));
  const lost = main.node().contains(document.activeElement);
  main.selectAll("*").remove();
  if (named && current === null) {
    main.append("p").attr("role", "alert")
      .text(`No feature ${named[2]} of layer ${named[1]} in this flow: it does not fire, or is not in it.`);
  }
  if (current === null) showOverview();
  else showFeature(current);
  document.title = current === null ? title : `${graph.name(current)} · ${title}`;
  markCurrent();
  if (lost) main.node().focus({ preventScroll: true });
}

function pressed(event) {
  const typing = event.target.matches("input, select"), listed = event.target.closest("#list a");
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "/" && !typing) byId("query").node().focus();
  else if (event.target.id === "query" && event.key === "ArrowDown") list.select("a").node()?.focus();
  else if (listed && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
    const item = listed.parentElement;
    const next = event.key === "ArrowDown" ? item.nextElementSibling : item.previousElementSibling;
    (next?.firstElementChild || byId("query").node()).focus();
  } else if (!typing && current !== null && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
    const left = event.key === "ArrowLeft", [edge] = left ? graph.into(current) : graph.out(current);
    if (edge === undefined) return;
    location.hash = graph.hash((left ? graph.edges.source : graph.edges.target)[edge]);
  } else return;
  event.preventDefault();
}

const title = document.title;
FlowGraph.read(data, EVENTS).then(async (found) => {
  graph = found;
  const { model, similarity, alpha } = data.facts;
  byId("facts").text([
    model && `Model: ${model}`,
    `${d3.format(",")(graph.size)} features of ${data.layers.length} layers, ${d3.format(",")(graph.edges.source.length)} edges`,
    similarity && `similarity: ${similarity.label || similarity.name}`,
    typeof alpha === "number" && `threshold: exceeded by ${percent(alpha)} of features under the null`,
  ].filter(Boolean).join(" · "));
  byId("layer").selectAll("option.layer").data(data.layers).join("option").attr("class", "layer")
    .attr("value", (layer) => layer).text((layer) => layer);
  let waiting;
  byId("query").on("input", () => {
    list.attr("aria-busy", "true");
    clearTimeout(waiting);
    waiting = setTimeout(search, 150);
  });
  for (const id of ["layer", "event", "order"]) byId(id).on("change", search);
  window.addEventListener("hashchange", show);
  document.addEventListener("keydown", pressed);
  show();
  await search();
  document.body.dataset.ready = "true";
}).catch((error) => byId("main").append("p").attr("role", "alert").text(`This page cannot be shown: ${error.message}`));
