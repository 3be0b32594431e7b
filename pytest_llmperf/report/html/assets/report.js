// Draws the figures from the JSON beside each, when they come into view; filters; hands out the raw samples.
"use strict";
(() => {
  document.documentElement.classList.add("js");
  const ink = "var(--ink)", quiet = "var(--quiet)", line = "var(--line)", accent = "var(--accent)", bad = "var(--bad)", warn = "var(--warn)";
  const short = (text, n = 26) => (text.length > n ? text.slice(0, n - 1) + "…" : text);
  const number = (x, digits = 4) => String(Number(x.toPrecision(digits)));
  const tip = { fontSize: 12, lineHeight: 1.35, textPadding: 8, stroke: line };
  const narrow = (width) => width < 480;

  // Width that the longest name takes on the left, at most half of the picture.
  const nameMargin = (names, width) => Math.min(0.45 * width, 14 + 7 * Math.max(...names.map((name) => short(name).length)));

  const pareto = (d, width) => {
    const front = d.points.filter((p) => p.front).sort((a, b) => a.x - b.x);
    const labelled = d.points.length > 14 ? front : d.points;
    const domain = wide(d.points.map((p) => p.x), d.span, d.reverse);
    const speeds = d.points.flatMap((p) => [p.low ?? p.y, p.high ?? p.y]);
    const log = far(speeds), heights = log ? [Math.min(...speeds) / 1.3, Math.max(...speeds) * 1.3] : [0, Math.max(...speeds)];
    const inset = 18;
    return {
      height: narrow(width) ? 280 : 320, marginTop: 26, marginRight: 34, marginLeft: 48, marginBottom: 42, inset,
      x: { label: d.x, labelArrow: "none", labelAnchor: "center", ticks: narrow(width) ? 4 : 6, grid: true, reverse: d.reverse, domain },
      y: { label: `${d.y}${log ? " (logarithmic)" : ""} ↑`, labelArrow: "none", type: log ? "log" : "linear", domain: heights, grid: !log, ticks: log ? 4 : 5, tickFormat: (y) => number(y) },
      marks: [
        Plot.line(front, { x: "x", y: "y", stroke: accent, strokeOpacity: 0.5, strokeDasharray: "3 3" }),
        Plot.ruleX(d.points.filter((p) => p.low !== null), { x: "x", y1: "low", y2: "high", stroke: (p) => (p.front ? accent : quiet) }),
        Plot.dot(d.points, { x: "x", y: "y", r: 5, stroke: (p) => (p.front ? accent : quiet), fill: (p) => (p.front ? accent : "var(--paper)"), strokeWidth: 1.5 }),
        ...labels(labelled, { width: width - 82 - 2 * inset, height: (narrow(width) ? 280 : 320) - 68 - 2 * inset, margin: inset, x: domain, y: heights, logY: log, reverse: d.reverse, fill: (p) => (p.front ? accent : ink) }),
        Plot.tip(d.points, Plot.pointer({ x: "x", y: "y", title: "tip", ...tip })),
      ],
    };
  };

  // Values that a linear axis would squeeze into a corner.
  const far = (values) => Math.min(...values) > 0 && Math.max(...values) > 8 * Math.min(...values);

  // The values' range, at least `span` wide: equal values stand at its better end.
  const wide = (values, span, reverse) => {
    const low = Math.min(...values), high = Math.max(...values);
    if (high - low >= span) return [low, high];
    return reverse ? [low, low + span] : [high - span, high];
  };

  // Names beside their points, each in the first place where it covers neither a point, an interval (`low` to `high`) nor a name.
  const places = [[9, -9, "start"], [-9, -9, "end"], [9, 10, "start"], [-9, 10, "end"], [9, -22, "start"], [-9, -22, "end"]];
  const labels = (points, { width, height, margin = 0, fill, x, y, reverse = false, logX = false, logY = false }) => {
    const scale = (value, [from, to], size, flip, log) => {
      const [low, high] = log ? [Math.log(from), Math.log(to)] : [from, to];
      return points.map((p) => ((log ? Math.log(value(p)) : value(p)) - low) / (high - low || 1)).map((share) => (flip ? 1 - share : share) * size);
    };
    const up = (value) => scale(value, y, height, true, logY);
    const xs = scale((p) => p.x, x, width, reverse, logX), ys = up((p) => p.y), lows = up((p) => p.low ?? p.y), highs = up((p) => p.high ?? p.y);
    const taken = xs.flatMap((x, i) => [[x - 5, ys[i] - 5, x + 5, ys[i] + 5], [x - 1, highs[i], x + 1, lows[i]]]);
    const box = (i, [dx, dy, anchor]) => {
      const text = 7.2 * short(points[i].name).length, left = xs[i] + dx - (anchor === "end" ? text : 0);
      return [left, ys[i] + dy - 7, left + text, ys[i] + dy + 7];
    };
    const free = (b) => b[0] > -margin - 16 && b[2] < width + margin + 16 && taken.every((t) => b[2] < t[0] || b[0] > t[2] || b[3] < t[1] || b[1] > t[3]);
    return points.flatMap((point, i) => {
      const chosen = places.find((place) => free(box(i, place)));
      if (!chosen) return [];  // its tip names it
      taken.push(box(i, chosen));
      const [dx, dy, textAnchor] = chosen;
      return Plot.text([point], { x: "x", y: "y", text: (p) => short(p.name), dx, dy, textAnchor, fill: fill(point), fontSize: 12, stroke: "var(--paper)", strokeWidth: 3 });
    });
  };

  const ratios = (d, width) => {
    const values = d.rows.flatMap((r) => [1, r.v, r.low ?? r.v, r.high ?? r.v]), log = far(values);
    return {
      height: 56 + 30 * d.rows.length, marginLeft: nameMargin(d.rows.map((r) => r.name), width), marginRight: 56, marginBottom: 38,
      x: { label: d.x, labelArrow: "none", labelAnchor: "center", type: log ? "log" : "linear", nice: !log, grid: !log, ticks: log ? 4 : 5, tickFormat: (x) => number(x), domain: log ? [Math.min(...values) / 1.2, Math.max(...values) * 1.2] : spread(values) },
      y: { label: null, domain: d.rows.map((r) => r.name), tickSize: 0, tickFormat: (name) => short(name) },
      marks: [
        Plot.ruleX([1], { stroke: quiet }),
        Plot.link(d.rows.filter((r) => r.low !== null), { x1: "low", x2: "high", y1: "name", y2: "name", stroke: accent, strokeWidth: 2 }),
        Plot.dot(d.rows, { x: "v", y: "name", r: 4.5, fill: accent }),
        Plot.text(d.rows, { x: (r) => r.high ?? r.v, y: "name", text: (r) => `${r.v.toPrecision(3)}×`, dx: 9, textAnchor: "start", fontSize: 12, fill: ink, stroke: "var(--paper)", strokeWidth: 3 }),
        Plot.tip(d.rows, Plot.pointerY({ x: "v", y: "name", title: (r) => `${r.name}: ${r.v.toPrecision(3)}×${r.low === null ? "" : ` [${r.low.toPrecision(3)}, ${r.high.toPrecision(3)}]`}`, ...tip })),
      ],
    };
  };

  const spread = (values) => {
    const low = Math.min(...values), high = Math.max(...values), pad = 0.06 * (high - low || Math.abs(high) || 1);
    return [low - pad, high + pad];
  };

  const long = (rows) => rows.flatMap((r) => r.values.map((v, i) => ({ name: r.name, v, i: r.at ? r.at[i] : i + 1 })));

  const strips = (d, width) => ({
    height: 48 + 30 * d.rows.length, marginLeft: nameMargin(d.rows.map((r) => r.name), width), marginRight: 16, marginBottom: 38,
    x: { label: d.x, labelArrow: "none", labelAnchor: "center", nice: true, grid: true, ticks: 5 },
    y: { label: null, domain: d.rows.map((r) => r.name), tickSize: 0, tickFormat: (name) => short(name), padding: 0.35 },
    marks: [
      Plot.dot(long(d.rows), { x: "v", y: "name", r: 3, fill: ink, fillOpacity: 0.5 }),
      Plot.tickX(long(d.rows), Plot.groupY({ x: "median" }, { x: "v", y: "name", stroke: accent, strokeWidth: 2.5 })),
      Plot.tip(long(d.rows), Plot.pointer({ x: "v", y: "name", title: (p) => `${p.name}\nrepetition ${p.i}: ${number(p.v)}`, ...tip })),
    ],
  });

  const lines = (d, width) => ({
    height: 46 + 62 * d.rows.length, marginLeft: 46, marginRight: nameMargin(d.rows.map((r) => r.name), width), marginBottom: 38,
    x: { label: d.x, labelArrow: "none", labelAnchor: "center", ticks: 6, tickFormat: (i) => (Number.isInteger(i) ? String(i) : "") },
    y: { label: d.y, labelArrow: "none", grid: true, ticks: 2, nice: 2 },
    fy: { label: null, domain: d.rows.map((r) => r.name), tickFormat: (name) => short(name), padding: 0.35 },
    marks: [
      Plot.line(long(d.rows), { x: "i", y: "v", fy: "name", stroke: accent, strokeWidth: 1.5 }),
      Plot.dot(long(d.rows), { x: "i", y: "v", fy: "name", r: 1.8, fill: accent }),
      Plot.tip(long(d.rows), Plot.pointer({ x: "i", y: "v", fy: "name", title: (p) => `${p.name}\n${d.x} ${p.i}: ${number(p.v)}`, ...tip })),
    ],
  });

  const shares = (d, width) => {
    const rows = d.rows.flatMap((r) => [["MBU", r.mbu], ["MFU", r.mfu]].filter(([, v]) => v !== null).map(([what, v]) => ({ name: r.name, what, v })));
    return {
      height: 70 + 28 * d.rows.length, marginLeft: nameMargin(d.rows.map((r) => r.name), width), marginRight: 44, marginTop: 30, marginBottom: 34,
      x: { label: "% of what the device reached", labelArrow: "none", labelAnchor: "center", domain: [0, 100], ticks: 3, grid: true },
      y: { label: null, domain: d.rows.map((r) => r.name), tickSize: 0, tickFormat: (name) => short(name), padding: 0.35 },
      fx: { label: null, padding: 0.25 },
      marks: [
        Plot.barX(rows, { x: (r) => Math.min(r.v, 100), y: "name", fx: "what", fill: accent }),
        Plot.text(rows, { x: (r) => Math.min(r.v, 100), y: "name", fx: "what", text: (r) => number(Number(r.v.toPrecision(2))), dx: 5, textAnchor: "start", fontSize: 12 }),
        Plot.tip(rows, Plot.pointerY({ x: (r) => Math.min(r.v, 100), y: "name", fx: "what", title: (r) => `${r.name}: ${r.what} ${number(r.v)} %`, ...tip })),
        Plot.ruleX([0], { stroke: quiet }),
      ],
    };
  };

  const roofline = (d, width) => {
    const xs = [...d.points.map((p) => p.x), ...d.roofs.map((r) => r.flops / r.bytes)];
    const ends = [Math.min(...xs) / 3, Math.max(...xs) * 3];
    const heights = [Math.min(...d.points.map((p) => p.y), ...d.roofs.map((r) => Math.min(r.flops, ends[0] * r.bytes))) / 1.5, 2 * Math.max(...d.roofs.map((r) => r.flops), ...d.points.map((p) => p.y))];
    const roof = d.roofs.flatMap((r) => [ends[0], r.flops / r.bytes, ends[1]].sort((a, b) => a - b).map((x) => ({ dtype: r.dtype, x, y: Math.min(r.flops, x * r.bytes) })));
    const tops = d.roofs.map((r) => ({ x: ends[1], y: r.flops, text: `${number(r.flops)} GFLOP/s ${r.dtype}` }));
    return {
      height: narrow(width) ? 280 : 300, marginLeft: 56, marginRight: 24, marginTop: 26, marginBottom: 42,
      x: { type: "log", label: "FLOP per byte moved", labelArrow: "none", labelAnchor: "center", domain: ends, ticks: 4, tickFormat: (x) => number(x) },
      y: { type: "log", label: "GFLOP/s ↑", labelArrow: "none", domain: heights, ticks: 4, tickFormat: (x) => number(x) },
      marks: [
        Plot.line(roof, { x: "x", y: "y", z: "dtype", stroke: quiet, strokeWidth: 1.5 }),
        ...labels(d.points, { width: width - 80, height: (narrow(width) ? 280 : 300) - 68, x: ends, y: heights, fill: () => ink, logX: true, logY: true }),
        Plot.text(tops, { x: "x", y: "y", text: "text", textAnchor: "end", dy: -8, fill: quiet, fontSize: 12, stroke: "var(--paper)", strokeWidth: 3 }),
        Plot.ruleX(d.points, { x: "x", y1: "y", y2: (p) => Math.max(...d.roofs.map((r) => Math.min(r.flops, p.x * r.bytes))), stroke: line, strokeDasharray: "2 3" }),
        Plot.dot(d.points, { x: "x", y: "y", r: 4.5, fill: accent }),
        Plot.tip(d.points, Plot.pointer({ x: "x", y: "y", title: "tip", ...tip })),
      ],
    };
  };

  const ranks = (d, width) => ({
    height: 50 + 22 * new Set(d.rows.map((r) => r.name + r.rank)).size * new Set(d.rows.map((r) => r.gauge)).size,
    marginLeft: 74, marginRight: nameMargin(d.rows.map((r) => `${r.name}, ${r.rank}`), width), marginBottom: 36,
    x: { label: "GB", labelArrow: "none", labelAnchor: "center", grid: true, ticks: 5 },
    y: { label: null, tickSize: 0 }, fy: { label: null, padding: 0.2, tickFormat: (name) => short(name) },
    marks: [
      Plot.barX(d.rows, { x: "gb", y: "gauge", fy: (r) => `${r.name}, ${r.rank}`, fill: accent }),
      Plot.text(d.rows, { x: "gb", y: "gauge", fy: (r) => `${r.name}, ${r.rank}`, text: (r) => number(r.gb), dx: 4, textAnchor: "start", fontSize: 11 }),
    ],
  });

  const pairs = (d) => {
    const rows = d.ratios.map((v, i) => ({ v, i: i + 1 }));
    return {
      height: 216, marginLeft: 50, marginTop: 28, marginBottom: 38,
      x: { label: "pair", labelArrow: "none", labelAnchor: "center", ticks: Math.min(rows.length, 8), tickFormat: (i) => (Number.isInteger(i) ? String(i) : "") },
      y: { label: "this / other", labelArrow: "none", grid: true, ticks: 5, nice: true, domain: spread([1, ...d.ratios, ...[d.low, d.high].filter((x) => x !== null)]) },
      marks: [
        ...(d.low === null ? [] : [Plot.rect([d], { y1: "low", y2: "high", x1: 0.5, x2: rows.length + 0.5, fill: accent, fillOpacity: 0.13 })]),
        Plot.ruleY([1], { stroke: quiet }),
        ...(d.v === null ? [] : [Plot.ruleY([d.v], { stroke: accent, strokeWidth: 1.5 })]),
        Plot.dot(rows, { x: "i", y: "v", r: 3.5, fill: accent }),
        Plot.tip(rows, Plot.pointer({ x: "i", y: "v", title: (p) => `pair ${p.i}: ${number(p.v)}×`, ...tip })),
      ],
    };
  };

  let latest = Infinity;

  const history = (all, width) => {
    const times = [all.start];
    for (const gap of all.gaps) times.push(times.at(-1) + gap);
    const cut = Math.max(0, all.values.length - latest);
    times.splice(0, cut);
    const moved = (events) => events.map(([i, ...rest]) => [i - cut, ...rest]).filter(([i]) => i > 0 || (i === 0 && cut === 0));
    const d = { ...all, values: all.values.slice(cut), bad: all.bad.map((i) => i - cut), steps: moved(all.steps), levels: moved(all.levels), places: moved(all.places) };
    const day = (i) => new Date(times[i] * 1000).toISOString().slice(0, 10);
    // A day is named once, at its first session; where all are of one day, their times are.
    const days = d.values.map((_, i) => day(i)), oneDay = new Set(days).size === 1;
    const named = days.map((_, i) => i).filter((i) => oneDay || i === 0 || days[i] !== days[i - 1]);
    const every = Math.ceil(named.length / (narrow(width) ? 3 : 7));
    const ticks = named.filter((_, n) => n % every === 0);
    const stamp = (i) => (oneDay ? new Date(times[i] * 1000).toISOString().slice(11, 16) : days[i]);
    const rows = d.values.map((v, i) => ({ i, v }));
    const cuts = [0, ...d.steps.map((s) => s[0]), rows.length - 1];
    const levels = d.steps.length ? cuts.slice(0, -1).flatMap((at, n) => {
      const v = n === 0 ? d.steps[0][1] : d.steps[n - 1][2];
      return [{ n, i: at, v }, { n, i: cuts[n + 1], v }];
    }) : [];
    const happened = new Map();
    const say = (i, text) => happened.set(i, [...(happened.get(i) ?? []), text]);
    d.steps.forEach(([i, a, b, ok]) => say(i, `${ok ? "accepted change" : "change"} of level: ${number(a)} → ${number(b)} ${d.unit}`));
    d.levels.forEach(([i, text]) => say(i, text));
    d.places.forEach(([i, text]) => say(i, `environment: ${text}`));
    const failed = new Set(d.bad);
    const title = (p) => [`${number(p.v)} ${d.unit}, session ${p.i + cut + 1} on ${day(p.i)}`, ...(failed.has(p.i) ? ["FAIL"] : []), ...(happened.get(p.i) ?? []).map((t) => short(t, 90))].join("\n");
    return {
      height: oneDay ? 232 : 220, marginLeft: 54, marginRight: 32, marginTop: 26, marginBottom: oneDay ? 42 : 30,
      x: { label: oneDay ? `time (UTC) on ${days[0]}` : null, labelArrow: "none", labelAnchor: "center", ticks, tickFormat: stamp, domain: [0, Math.max(1, rows.length - 1)] },
      y: { label: `${d.unit} ↑`, labelArrow: "none", grid: true, nice: true, ticks: 4, domain: spread(d.values) },
      marks: [
        Plot.ruleX(d.places, { x: "0", stroke: quiet, strokeDasharray: "1 3" }),
        Plot.ruleX(d.levels, { x: "0", stroke: accent, strokeDasharray: "4 3" }),
        Plot.ruleX(d.steps, { x: "0", stroke: (s) => (s[3] ? accent : warn), strokeWidth: 1.5 }),
        Plot.line(rows, { x: "i", y: "v", stroke: quiet, strokeOpacity: 0.6, strokeWidth: 1 }),
        ...(rows.length <= 150 ? [Plot.dot(rows, { x: "i", y: "v", r: 2.2, fill: quiet })] : []),
        Plot.line(levels, { x: "i", y: "v", z: "n", stroke: accent, strokeWidth: 2.5 }),
        Plot.dot(rows.filter((r) => failed.has(r.i)), { x: "i", y: "v", r: 4, stroke: bad, strokeWidth: 2 }),
        Plot.tip(rows, Plot.pointerX({ x: "i", y: "v", title, ...tip })),
      ],
    };
  };

  const charts = { pareto, ratios, strips, lines, shares, roofline, ranks, pairs, history };

  const draw = (figure) => {
    const place = figure.querySelector(".plot");
    const width = Math.max(280, Math.floor(place.clientWidth || figure.clientWidth));
    if (figure.drawn === width) return;
    figure.alt ??= place.textContent;
    figure.data ??= JSON.parse(figure.querySelector("script").textContent);
    const svg = Plot.plot({ width, ...charts[figure.dataset.chart](figure.data, width), style: { background: "transparent", fontSize: "12px" } });
    for (const mark of svg.querySelectorAll("[aria-label]")) {  // the picture has one text; its pieces have none
      mark.dataset.mark = mark.getAttribute("aria-label");
      mark.removeAttribute("aria-label");
    }
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", figure.alt);
    place.replaceChildren(svg);
    figure.drawn = width;
  };

  const figures = [...document.querySelectorAll("figure[data-chart]")];
  const seen = new IntersectionObserver((entries) => entries.forEach((e) => e.isIntersecting && draw(e.target)), { rootMargin: "400px" });
  figures.forEach((figure) => seen.observe(figure));
  let waiting;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => figures.filter((f) => f.drawn).forEach(draw), 150); });
  addEventListener("beforeprint", () => figures.forEach(draw));

  // How many sessions of each history are drawn.
  const section = document.getElementById("history");
  if (section?.querySelector("figure")) {
    const choice = document.createElement("p");
    choice.className = "range";
    choice.innerHTML = '<label>Sessions <select id="range"><option value="Infinity">all<option value="200">latest 200<option value="50">latest 50</select></label>';
    section.querySelector(".part").before(choice);
    choice.querySelector("select").addEventListener("change", ({ target }) => {
      latest = Number(target.value);
      figures.filter((f) => f.drawn && f.dataset.chart === "history").forEach((f) => { f.drawn = 0; draw(f); });
    });
  }

  // Filters: what a person types must be in the words of a row or part; a pressed outcome must be its outcome.
  const field = document.getElementById("filter"), chips = [...document.querySelectorAll("[data-only]")], matches = document.getElementById("matches");
  const filtered = [...document.querySelectorAll("main [data-words]")];
  const apply = () => {
    const wanted = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const only = chips.filter((c) => c.getAttribute("aria-pressed") === "true").map((c) => c.dataset.only);
    let shown = 0, rows = 0;
    for (const each of filtered) {
      const fits = wanted.every((word) => each.dataset.words.includes(word)) && (!only.length || !each.dataset.outcome || only.includes(each.dataset.outcome));
      each.hidden = !fits;
      if (each.closest("#runs")) { rows += 1; shown += fits ? 1 : 0; }
    }
    matches.textContent = wanted.length || only.length ? `${shown} of ${rows} runs` : "";
  };
  field.addEventListener("input", apply);
  field.form.addEventListener("submit", (event) => event.preventDefault());
  chips.forEach((chip) => chip.addEventListener("click", () => {
    chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
    apply();
  }));

  // Downloads, made in the page.
  const raw = () => JSON.parse(document.getElementById("raw").textContent);
  const quoted = (x) => `"${String(x).replaceAll('"', '""').replace(/^([=+\-@\t\r])/, "'$1")}"`;
  const csv = (runs) => ["test,label,model,strategy,workload,created,metric,unit,repetition,value",
    ...runs.flatMap((r) => Object.entries(r.samples).flatMap(([metric, values]) => values.map((v, i) =>
      [...[r.test, r.label, r.model, r.strategy, r.workload_text, r.created, metric, r.units[metric] ?? ""].map(quoted), i + 1, v].join(","))))].join("\n");
  const save = (name, text, type) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  document.addEventListener("click", ({ target }) => {
    const { run, download } = target.dataset ?? {};
    if (run) save(`llmperf-${run.slice(0, 12)}.json`, JSON.stringify(raw().filter((r) => r.id === run), null, 1), "application/json");
    if (download === "json") save("llmperf-samples.json", JSON.stringify(raw(), null, 1), "application/json");
    if (download === "csv") save("llmperf-samples.csv", csv(raw()), "text/csv");
  });
})();
