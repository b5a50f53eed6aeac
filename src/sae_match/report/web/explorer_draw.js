// Drawings in SVG by d3; colors are in the style sheet. Text reaches the page through textContent only.
const MARKS = { split: "S", merge: "M", birth: "B", death: "D" };
const shortNumber = (value) => value === undefined || Number.isNaN(value) ? "–" : String(Number(value.toPrecision(3)));
const weightNumber = (value) => Number.isNaN(value) ? "–" : d3.format(".3f")(value);
const digits = (value) => value >= 0.0995 ? Math.round(100 * value) : Number((100 * value).toPrecision(2));
const percent = (value) => Number.isNaN(value) ? "–" : `${digits(value)}%`;
const cut = (text, length) => text.length > length ? `${text.slice(0, length - 1)}…` : text;
const shown = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥")
  .replace(/^ +| +$/g, (spaces) => text.trim() ? "" : "␣".repeat(spaces.length));

function weightsOf(graph, edge) {
  return [
    ["similarity", graph.data.facts.similarity?.label || "similarity"],
    ["coactivation", "co-activation"], ["deactivation", "causal weight"],
  ].filter(([name]) => graph.edges[name])
    .map(([name, label]) => `${label} ${weightNumber(graph.edges[name][edge])}`).join(", ");
}

const BOX = { width: 88, height: 38, row: 50, top: 44, side: 14, columns: [126, 170] };

// Order inside columns: by the mean place of neighbors nearer to the feature, so that edges cross little.
function layout(graph, node, flow, width) {
  const place = new Map([[node, 0]]), middle = graph.column(node), boxes = [];
  const columns = [...flow.columns.keys()].sort((a, b) => Math.abs(a - middle) - Math.abs(b - middle));
  for (const column of columns) {
    if (column === middle) continue;
    const mean = (one) => d3.mean(
      [...(column > middle ? graph.into(one) : graph.out(one))]
        .map((edge) => place.get((column > middle ? graph.edges.source : graph.edges.target)[edge]))
        .filter((at) => at !== undefined));
    const found = flow.columns.get(column).map((one, rank) => ({ one, at: mean(one) ?? 0, rank }));
    found.sort((a, b) => a.at - b.at || a.rank - b.rank);
    found.forEach(({ one }, i) => place.set(one, i - (found.length - 1) / 2));
    flow.columns.set(column, found.map(({ one }) => one));
  }
  const [first, last] = d3.extent(columns), [low, high] = d3.extent(place.values()), [narrow, wide] = BOX.columns;
  const step = Math.min(wide, Math.max(narrow, (width - BOX.width - 2 * BOX.side) / Math.max(1, last - first)));
  for (const column of columns) {
    for (const one of flow.columns.get(column)) {
      boxes.push({ node: one, x: (column - first) * step + BOX.side, y: BOX.top + (place.get(one) - low) * BOX.row });
    }
  }
  const height = BOX.top + (high - low) * BOX.row + BOX.height + (flow.hidden.size ? 32 : 14);
  return { boxes, first, last, step, height, width: (last - first) * step + BOX.width + 2 * BOX.side };
}

function drawFlow(place, graph, node, limit, floor) {
  const flow = graph.flow(node, limit, floor), drawn = layout(graph, node, flow, place.node().clientWidth);
  const box = new Map(drawn.boxes.map((one) => [one.node, one])), [low, high] = d3.extent(graph.edges.similarity);
  const width = d3.scaleLinear([low, high], [1, 8]).clamp(true), { source, target, deactivation } = graph.edges;
  place.selectAll("*").remove();
  const svg = place.append("svg").attr("width", drawn.width).attr("height", drawn.height).attr("role", "group")
    .attr("aria-label", `Flow through ${graph.name(node)}`);
  const columns = d3.range(drawn.first, drawn.last + 1);
  const x = (column) => (column - drawn.first) * drawn.step + BOX.side + BOX.width / 2;
  svg.selectAll("text.layer").data(columns).join("text").attr("class", "layer").attr("x", x).attr("y", 18)
    .text((column) => `layer ${graph.data.layers[column]}`);
  svg.selectAll("text.more").data([...flow.hidden]).join("text").attr("class", "more")
    .attr("x", ([column]) => x(column))
    .attr("y", drawn.height - 8).text(([, count]) => `${count} weaker not drawn`);
  const link = d3.link(d3.curveBumpX)
    .source((edge) => [box.get(source[edge]).x + BOX.width, box.get(source[edge]).y + BOX.height / 2])
    .target((edge) => [box.get(target[edge]).x, box.get(target[edge]).y + BOX.height / 2]);
  svg.selectAll("path").data(flow.edges).join("path").attr("d", link)
    .attr("stroke-width", (edge) => width(graph.edges.similarity[edge]))
    .attr("class", (edge) => graph.mutual(edge) ? "edge mutual" : "edge")
    .style("--cause", (edge) => `${Math.round(100 * Math.max(0, Math.min(1, deactivation?.[edge] || 0)))}%`)
    .append("title")
    .text((edge) => `${graph.name(source[edge])} → ${graph.name(target[edge])}: ${weightsOf(graph, edge)}`);
  const near = flow.edges.filter((edge) => source[edge] === node || target[edge] === node);
  const beside = (edge) => source[edge] === node ? link.target()(edge) : link.source()(edge); // the partner's end
  svg.selectAll("text.weight").data(near).join("text").attr("class", "weight")
    .attr("x", (edge) => beside(edge)[0] + (source[edge] === node ? -17 : 17)).attr("y", (edge) => beside(edge)[1] + 4)
    .text((edge) => d3.format(".2f")(graph.edges.similarity[edge]));
  const features = svg.selectAll("a").data(drawn.boxes).join("a").attr("href", (one) => graph.hash(one.node))
    .attr("class", (one) => one.node === node ? "feature chosen" : "feature")
    .attr("transform", (one) => `translate(${one.x},${one.y})`)
    .attr("aria-current", (one) => one.node === node ? "true" : null);
  features.append("title").text(({ node: one }) =>
    [graph.name(one), graph.topTokens(one).map(shown).join(" · "), graph.events(one).join(", ")]
      .filter(Boolean).join("\n"));
  features.append("rect").attr("width", BOX.width).attr("height", BOX.height).attr("rx", 6);
  const called = graph.text !== null;
  features.append("text").attr("class", "number").attr("x", BOX.width / 2).attr("y", called ? 16 : 24)
    .text((one) => graph.nodes.feature[one.node]);
  if (called) {
    features.append("text").attr("class", "token").attr("x", BOX.width / 2).attr("y", 30)
      .text((one) => cut(graph.topTokens(one.node).slice(0, 2).map(shown).join(" · ") || "", 12));
  }
  const marks = features.selectAll("g")
    .data((one) => graph.events(one.node).filter((event) => MARKS[event]).map((event) => ({
    event, before: event === "birth" || event === "merge" }))).join("g").attr("class", (mark) => `mark ${mark.event}`)
    .attr("transform", (mark) => `translate(${mark.before ? 4 : BOX.width - 4},1)`);
  marks.append("circle").attr("r", 8);
  marks.append("text").attr("y", 3.5).text((mark) => MARKS[mark.event]);
  const chosen = box.get(node), scroller = place.node();
  scroller.scrollLeft = chosen.x + BOX.width / 2 - scroller.clientWidth / 2;
  return { ...flow, nodes: drawn.boxes.map((one) => one.node) };
}

function drawHistogram(place, counts, largest) {
  const edge = (i) => shortNumber(largest * i / counts.length);
  const size = { width: 300, height: 120, left: 46, bottom: 34, top: 8, right: 12 };
  const x = d3.scaleLinear([0, largest], [size.left, size.width - size.right]);
  const y = d3.scaleLog([0.7, Math.max(10, d3.max(counts))], [size.height - size.bottom, size.top]);
  const svg = place.append("svg").attr("class", "chart").attr("width", size.width).attr("height", size.height)
    .attr("role", "img")
    .attr("aria-label", "Histogram of activations");
  svg.selectAll("rect").data(counts).join("rect").attr("x", (_, i) => x(largest * i / counts.length) + 0.5)
    .attr("width", (size.width - size.left - size.right) / counts.length - 1)
    .attr("y", (count) => count ? y(count) : y.range()[0])
    .attr("height", (count) => count ? y.range()[0] - y(count) : 0)
    .append("title").text((count, i) => `${edge(i)} to ${edge(i + 1)}: ${count} tokens`);
  const powers = d3.range(Math.floor(Math.log10(y.domain()[1])) + 1).map((power) => 10 ** power);
  svg.append("g").attr("transform", `translate(0,${y.range()[0]})`).call(d3.axisBottom(x).ticks(4).tickSizeOuter(0));
  svg.append("g").attr("transform", `translate(${size.left},0)`)
    .call(d3.axisLeft(y).tickValues(powers).tickFormat(d3.format("~s")).tickSizeOuter(0));
  svg.append("text").attr("class", "label").attr("x", (size.left + size.width - size.right) / 2)
    .attr("y", size.height - 3).text("activation");
  svg.append("text").attr("class", "label")
    .attr("transform", `translate(11,${(size.top + y.range()[0]) / 2}) rotate(-90)`).text("tokens");
}

// How many features could have had the event: of the later layer, or of the earlier one.
const among = (row, event) => event === "merge" || event === "birth" ? row.features_to : row.features;

// One small chart per event: the share of features over layers, and what two seeds of a layer have instead.
function drawEvents(place, events, steps, noise) {
  const size = { width: 182, height: 140, left: 38, bottom: 36, top: 10, right: 6 };
  for (const event of events) {
    const share = (row) => row[event] / among(row, event), figure = place.append("figure");
    figure.append("figcaption").attr("class", event).text(event);
    const svg = figure.append("svg").attr("class", "chart").attr("width", size.width).attr("height", size.height)
      .attr("role", "img")
      .attr("aria-label", `${event} by layer: ${steps.map((row) => `${row.layer} ${percent(share(row))}`).join(", ")}`);
    const x = d3.scalePoint(steps.map((row) => row.layer), [size.left, size.width - size.right]).padding(0.5);
    const most = d3.max([...steps, ...noise], share) || 0.01;
    const y = d3.scaleLinear([0, most], [size.height - size.bottom, size.top]).nice(3);
    const every = Math.ceil(steps.length / 8);
    svg.append("g").attr("transform", `translate(0,${y.range()[0]})`)
      .call(d3.axisBottom(x).tickValues(x.domain().filter((_, i) => i % every === 0)).tickSizeOuter(0));
    svg.append("g").attr("class", "grid").attr("transform", `translate(${size.left},0)`)
      .call(d3.axisLeft(y).ticks(3).tickFormat((value) => percent(value))
      .tickSize(size.right + size.left - size.width));
    svg.selectAll("line.noise").data(steps.filter((row) => row.noise)).join("line").attr("class", "noise")
      .attr("x1", (row) => x(row.layer) - x.step() / 2).attr("x2", (row) => x(row.layer) + x.step() / 2)
      .attr("y1", (row) => y(share(row.noise))).attr("y2", (row) => y(share(row.noise)));
    svg.append("path").attr("class", `curve ${event}`)
      .attr("d", d3.line((row) => x(row.layer), (row) => y(share(row)))(steps));
    svg.selectAll("circle").data(steps).join("circle").attr("class", `point ${event}`).attr("r", 3.5)
      .attr("cx", (row) => x(row.layer)).attr("cy", (row) => y(share(row)))
      .append("title")
      .text((row) => `${row.layer} to ${row.layer_to}: ${row[event]} of ${among(row, event)} (${percent(share(row))})`);
    svg.append("text").attr("class", "label").attr("x", (size.left + size.width - size.right) / 2)
      .attr("y", size.height - 4)
      .text("from layer");
  }
}
