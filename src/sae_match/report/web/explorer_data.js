"use strict";
// The page's data: numbers are columns of base64, gzip and little-endian bytes; details of a layer are unpacked on demand.
const KINDS = { u8: Uint8Array, u32: Uint32Array, f32: Float32Array };

async function unpack(column) {
  const text = atob(column.data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new KINDS[column.kind](await new Response(stream).arrayBuffer());
}

async function unpackAll(columns) {
  const names = Object.keys(columns).filter((name) => columns[name].kind);
  const found = await Promise.all(names.map((name) => unpack(columns[name])));
  return Object.fromEntries(names.map((name, i) => [name, found[i]]));
}

// Nodes and edges are numbers: nodes by layer, then feature; edges by source, then target.
class FlowGraph {
  static async read(data, events) {
    const graph = Object.assign(new FlowGraph(), { data, eventNames: events, details: new Map() });
    [graph.nodes, graph.edges] = await Promise.all([unpackAll(data.nodes), unpackAll(data.edges)]);
    graph.size = graph.nodes.feature.length;
    graph.text = data.text && { ...data.text, ...(await unpackAll({ tokens: data.text.tokens, top: data.text.top })) };
    graph.out = graph.index(graph.edges.source);
    graph.into = graph.index(graph.edges.target);
    return graph;
  }

  // The edges of every node, the most similar first.
  index(ends) {
    const { similarity } = this.edges, start = new Uint32Array(this.size + 1);
    for (const node of ends) start[node + 1]++;
    for (let i = 0; i < this.size; i++) start[i + 1] += start[i];
    const next = start.slice(), order = new Uint32Array(ends.length);
    for (let edge = 0; edge < ends.length; edge++) order[next[ends[edge]]++] = edge;
    for (let node = 0; node < this.size; node++) {
      if (start[node + 1] - start[node] > 1) {
        order.subarray(start[node], start[node + 1]).sort((a, b) => similarity[b] - similarity[a]);
      }
    }
    return (node) => order.subarray(start[node], start[node + 1]);
  }

  column(node) { return d3.bisectRight(this.data.starts, node) - 1; }
  layer(node) { return this.data.layers[this.column(node)]; }
  name(node) { return `L${this.layer(node)}/${this.nodes.feature[node]}`; }
  hash(node) { return `#${this.layer(node)}/${this.nodes.feature[node]}`; }
  events(node) { return this.eventNames.filter((_, bit) => this.nodes.flags[node] >> bit & 1); }
  mutual(edge) { return this.edges.flags[edge] === 3; }

  link(node) {
    const before = this.data.links[this.column(node)];
    return before && before + this.nodes.feature[node];
  }

  find(layer, feature) {
    const column = this.data.layers.indexOf(layer);
    if (column < 0) return null;
    const [start, end] = [this.data.starts[column], this.data.starts[column + 1]];
    const node = d3.bisectLeft(this.nodes.feature, feature, start, end);
    return node < end && this.nodes.feature[node] === feature ? node : null;
  }

  topTokens(node) {
    if (!this.text) return [];
    const count = this.text.top.length / this.size;
    const rows = this.text.top.subarray(node * count, (node + 1) * count);
    return [...rows].filter((row) => row).map((row) => this.text.vocabulary[row - 1]);
  }

  // Ancestors and descendants: per layer the `limit` nodes with the best path to the feature. A path is as good as its
  // weakest edge, which compares similarities in any unit. Edges below `floor` do not count.
  flow(node, limit, floor) {
    const columns = new Map([[this.column(node), [node]]]), hidden = new Map(), kept = new Set([node]);
    for (const forward of [true, false]) {
      let front = new Map([[node, Infinity]]);
      while (front.size) {
        const next = new Map();
        for (const [from, weakest] of front) {
          for (const edge of forward ? this.out(from) : this.into(from)) {
            if (this.edges.similarity[edge] < floor) break;
            const to = (forward ? this.edges.target : this.edges.source)[edge];
            next.set(to, Math.max(next.get(to) ?? -Infinity, Math.min(weakest, this.edges.similarity[edge])));
          }
        }
        const best = [...next].sort((a, b) => b[1] - a[1]);
        front = new Map(best.slice(0, limit));
        if (front.size) {
          const column = this.column(best[0][0]);
          columns.set(column, [...front.keys()]);
          if (best.length > limit) hidden.set(column, best.length - limit);
          for (const found of front.keys()) kept.add(found);
        }
      }
    }
    const edges = [...kept].flatMap((from) => [...this.out(from)].filter(
      (edge) => this.edges.similarity[edge] >= floor && kept.has(this.edges.target[edge])));
    return { columns, hidden, edges };
  }

  async layerDetails(column) {
    if (!this.details.has(column)) {
      this.details.set(column, unpackAll(this.text.layers[column]).then((found) => {
        const row = Int32Array.from(found.kept);
        for (let i = 0, next = 0; i < row.length; i++) row[i] = row[i] ? next++ : -1;
        return { ...found, row };
      }));
    }
    return this.details.get(column);
  }

  // The contexts and the histogram of a feature; null where the page has none.
  async detail(node) {
    if (!this.text) return null;
    const column = this.column(node), of = await this.layerDetails(column);
    const row = of.row[node - this.data.starts[column]];
    if (row < 0) return null;
    const { contexts: count, bins, around, window, tokens, vocabulary } = this.text, contexts = [];
    for (let i = row * count; i < (row + 1) * count && of.place[i]; i++) {
      const place = of.place[i] - 1, start = place - place % window, pieces = [];
      for (let at = Math.max(start, place - around); at <= Math.min(start + window - 1, place + around); at++) {
        const share = of.share[i * (2 * around + 1) + at - place + around] / 255;
        pieces.push({ text: vocabulary[tokens[at]], share, peak: at === place });
      }
      const clipped = [place - around > start, place + around < start + window - 1];
      contexts.push({ value: of.value[i], pieces, clipped });
    }
    return { contexts, histogram: of.histogram.subarray(row * bins, (row + 1) * bins) };
  }

  // Features by text, best first: those most active on it, then those active on it, then those with it in a context.
  async withText(query) {
    if (!this.text) return [];
    const marked = this.marked(query.toLowerCase()), found = [];
    if (!marked) return [];
    const { contexts: count, around, window } = this.text;
    for (let column = 0; column < this.data.layers.length; column++) {
      const of = await this.layerDetails(column), first = this.data.starts[column];
      of.row.forEach((row, number) => {
        let score = 0;
        for (let i = row * count; row >= 0 && i < (row + 1) * count && of.place[i]; i++) {
          const place = of.place[i] - 1, start = place - place % window;
          const low = Math.max(start, place - around), high = Math.min(start + window, place + around + 1);
          if (marked.before[high] === marked.before[low]) continue;
          let best = 0.001;
          for (let at = low; at < high; at++) {
            if (marked.before[at + 1] > marked.before[at]) {
              const share = of.share[i * (2 * around + 1) + at - place + around] / 255;
              best = Math.max(best, share * (at === place ? 1 : 0.2));
            }
          }
          score += best;
        }
        if (score) found.push([first + number, score]);
      });
    }
    return found.sort((a, b) => b[1] - a[1]).map(([node]) => node);
  }

  // How many tokens before each one are part of the query somewhere in the text; null if it is nowhere.
  marked(query) {
    const { tokens, vocabulary } = this.text;
    if (!this.flat) {
      const lower = vocabulary.map((text) => text.toLowerCase()), parts = [];
      const offsets = new Uint32Array(tokens.length + 1);
      for (let i = 0; i < tokens.length; i++) {
        parts.push(lower[tokens[i]]);
        offsets[i + 1] = offsets[i] + lower[tokens[i]].length;
      }
      this.flat = { text: parts.join(""), offsets };
    }
    const { text, offsets } = this.flat, marks = new Uint8Array(tokens.length);
    let at = text.indexOf(query);
    if (at < 0) return null;
    for (; at >= 0; at = text.indexOf(query, at + query.length)) {
      const last = d3.bisectLeft(offsets, at + query.length) - 1;
      for (let i = d3.bisectRight(offsets, at) - 1; i <= last; i++) marks[i] = 1;
    }
    const before = new Uint32Array(tokens.length + 1);
    for (let i = 0; i < tokens.length; i++) before[i + 1] = before[i] + marks[i];
    return { before };
  }

  // Features of a layer (null: all) with an event (null: any); those that an identifier such as 14/231, L14/231 or 231
  // names, where the query is one; those with the query in their text, where it is not.
  async search(query, layer, event) {
    const id = /^\s*(?:L?(\d+)\s*[/:]\s*)?(\d+)\s*$/i.exec(query), bit = this.eventNames.indexOf(event);
    let nodes = d3.range(this.size);
    if (id) {
      const layers = id[1] === undefined ? this.data.layers : [Number(id[1])];
      nodes = layers.map((one) => this.find(one, Number(id[2]))).filter((node) => node !== null);
    } else if (query.trim()) nodes = await this.withText(query.trim());
    return nodes.filter((node) =>
      (layer === null || this.layer(node) === layer) && (bit < 0 || this.nodes.flags[node] >> bit & 1));
  }
}
