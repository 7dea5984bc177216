"use strict";
// The page of a dump: totals, a map of all blocks, a list that holds only the rows that are seen, and one block at a time.
// All that it shows is in the JSON form of docs/DUMP.md, which stands in the page.

const dump = JSON.parse(document.getElementById("dump").textContent);
const blocks = dump.blocks.sort((a, b) => a.number - b.number);
const byNumber = new Map(blocks.map((block) => [block.number, block]));
const ROW = 48; // pixels, as in the style sheet
const CLASSES = [
  ["identity", "identity"], ["control flow", "flow"], ["in-cache", "in_cache"],
  ["callout", "callouts"], ["rewritten", "rewritten"], ["no instruction", "undefined"],
];
const comers = new Map(); // number of a block -> [block that leads to it, link]
for (const block of blocks)
  for (const link of block.links ?? [])
    if (link.block !== undefined) comers.set(link.block, [...(comers.get(link.block) ?? []), [block, link]]);

const work = (block) => block.lines.reduce((sum, line) => sum + (line.count ?? 0), 0);
for (const block of blocks) {
  block.work = dump.hot ? work(block) : 0;
  block.last = block.lines.reduce((end, line) => Math.max(end, line.address + Math.max(1, line.bytes ? line.bytes.length / 2 : 1)), block.entry);
}
const most = blocks.reduce((top, block) => Math.max(top, block.work), 1);
const heat = (count) => (count > 0 ? Math.max(0.04, Math.log(count + 1) / Math.log(most + 1)) : 0);

const byId = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en-US");
const hex = (value) => value.toString(16).padStart(8, "0");
const spaced = (bytes) => (bytes ?? "").replace(/(..)(?=.)/g, "$1 ");
const style = (kind) => kind.replace(" ", "-");
const exits = (count) => `${number(count)} exit${count === 1 ? "" : "s"}`;

function make(tag, attributes = {}, ...children) {
  const element = tag === "svg" || make.inSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== undefined && child !== ""));
  return element;
}

function inSvg(draw) {
  make.inSvg = true;
  try { return draw(); } finally { make.inSvg = false; }
}

// -- the head of the page ---------------------------------------------------------------------------------------------

function showTotals() {
  const totals = dump.totals;
  byId("kernel").textContent = dump.kernel.replace(/^.*\//, "");
  byId("end").textContent = dump.how === "static" ? "static: translated from the file, nothing was run" : dump.end;
  const cards = [
    ["blocks", number(totals.blocks), "blocks"],
    ["instructions", number(totals.instructions), "guest instructions"],
    ["identity_share", `${(100 * totals.identity_share).toFixed(1)} %`, "identity"],
    ["growth", `${totals.growth.toFixed(2)} ×`, "growth in bytes", `${number(totals.guest_bytes)} bytes of guest code, ${number(totals.code_bytes)} translated`],
    ["in_cache", number(totals.in_cache), "emulated in the cache"],
    ["callouts", number(totals.callouts), "callouts in the code"],
    ["callout_exits", number(totals.callout_exits), "emulated by the VMM"],
    ["saved", totals.saved === undefined ? "–" : number(totals.saved), totals.saved === undefined ? "exits saved (--hot)" : "exits saved"],
  ];
  byId("totals").append(...cards.map(([id, value, words, title]) =>
    make("div", { class: "card", title }, make("b", { id: `total-${id}` }, value), make("span", {}, words))));
  const all = CLASSES.reduce((sum, [, key]) => sum + totals[key], 0) || 1;
  const shown = CLASSES.filter(([, key]) => totals[key]);
  byId("classes").append(
    make("div", { class: "bar", role: "img", "aria-label": shown.map(([name, key]) => `${totals[key]} ${name}`).join(", ") },
      ...shown.map(([name, key]) => make("i", { class: style(name), style: `width:${(100 * totals[key]) / all}%`, title: `${name}: ${number(totals[key])}` }))),
    make("div", { class: "legend" }, ...shown.map(([name, key]) =>
      make("span", {}, make("i", { class: style(name) }), `${name} `, make("b", { id: `total-${key}-class` }, number(totals[key]))))));
}

function dark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setUpTheme() {
  const button = byId("theme");
  const show = () => { button.textContent = dark() ? "☀ Light" : "☾ Dark"; drawMap(); };
  try {
    const kept = localStorage.getItem("vmm-dump-theme");
    if (kept) document.documentElement.dataset.theme = kept;
  } catch { /* a page without storage follows the system */ }
  button.addEventListener("click", () => {
    const theme = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("vmm-dump-theme", theme); } catch { /* as above */ }
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

// -- the map of all blocks ----------------------------------------------------------------------------------------------

const map = { cell: 12, across: 1 };

function drawMap() {
  const canvas = byId("map");
  const width = canvas.clientWidth || canvas.parentElement.clientWidth;
  map.cell = blocks.length <= 400 ? 14 : blocks.length <= 2000 ? 10 : blocks.length <= 10000 ? 6 : 4;
  map.across = Math.max(1, Math.floor(width / map.cell));
  const height = Math.max(1, Math.ceil(blocks.length / map.across)) * map.cell;
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const colours = getComputedStyle(document.body);
  const probe = make("i", { style: "display:none" });
  document.body.append(probe);
  const colour = (name) => { probe.style.color = `var(--${name})`; return colours && getComputedStyle(probe).color; };
  const [cold, hot, here] = [colour("line"), colour(dump.hot ? "heat" : "control-flow"), colour("accent")];
  probe.remove();
  const gap = map.cell > 5 ? 2 : 1;
  blocks.forEach((block, at) => {
    const x = (at % map.across) * map.cell, y = Math.floor(at / map.across) * map.cell;
    pen.fillStyle = cold;
    pen.fillRect(x, y, map.cell - gap, map.cell - gap);
    pen.globalAlpha = dump.hot ? heat(block.work) : Math.min(1, 2.2 * changed(block));
    pen.fillStyle = hot;
    pen.fillRect(x, y, map.cell - gap, map.cell - gap);
    pen.globalAlpha = 1;
    if (block === chosen) {
      pen.strokeStyle = here;
      pen.lineWidth = 2;
      pen.strokeRect(x - 0.5, y - 0.5, map.cell - gap + 1, map.cell - gap + 1);
    }
  });
  byId("map-words").textContent = dump.hot
    ? "Each square is a block, by address; the warmer, the more of its instructions were carried out (logarithmic)."
    : "Each square is a block, by address; the bluer, the more of its instructions had to be changed.";
}

function changed(block) {
  block.changed ??= block.lines.filter((line) => line.class !== "identity").length / Math.max(1, block.lines.length);
  return block.changed;
}

function blockOnMap(event) {
  const bounds = byId("map").getBoundingClientRect();
  return blocks[Math.floor((event.clientY - bounds.top) / map.cell) * map.across + Math.floor((event.clientX - bounds.left) / map.cell)];
}

// -- the list -----------------------------------------------------------------------------------------------------------

const ORDERS = {
  address: ["by address", (a, b) => a.number - b.number],
  heat: ["hottest first", (a, b) => b.work - a.work || a.number - b.number],
  exits: ["most exits first", (a, b) => (b.exits ?? 0) - (a.exits ?? 0) || a.number - b.number],
  size: ["largest first", (a, b) => b.code_bytes - a.code_bytes || a.number - b.number],
};
let listed = blocks;
let chosen;
let query = "";

function haystack(block) {
  block.haystack ??= [block.name ?? "", ...block.lines.flatMap((line) =>
    [line.text, ...(line.code ?? []).flatMap((code) => [code.text, code.words ?? ""])]),
  ...(block.stubs ?? []).flatMap((code) => [code.text, code.words ?? ""])].join("\n").toLowerCase();
  return block.haystack;
}

function asAddress(text) {
  return /^(0x)?[0-9a-f]{4,8}$/.test(text) ? parseInt(text.replace(/^0x/, ""), 16) : undefined;
}

function matches(block, text, address) {
  if (address !== undefined) {
    if (address >= block.entry && address < block.last) return true;
    if (block.lines.some((line) => line.address === address || line.at === address)) return true;
    if (text.startsWith("0x")) return hex(block.entry).startsWith(text.slice(2));
  }
  return haystack(block).includes(text);
}

function find() {
  query = byId("search").value.trim().toLowerCase();
  const address = asAddress(query);
  const order = ORDERS[byId("order").value][1];
  listed = query ? blocks.filter((block) => matches(block, query, address)) : [...blocks];
  if (address !== undefined) listed.sort((a, b) => (b.entry === address) - (a.entry === address) || order(a, b));
  else listed.sort(order);
  const all = blocks.length === dump.totals.blocks ? "" : ` (of ${number(dump.totals.blocks)} in the cache)`;
  byId("found").textContent = query ? `${number(listed.length)} of ${number(blocks.length)} blocks` : `${number(blocks.length)} blocks${all}`;
  byId("space").style.height = `${listed.length * ROW}px`;
  byId("list").scrollTop = 0;
  drawRows();
}

function drawRows() {
  const list = byId("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(listed.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
  const rows = byId("rows");
  rows.style.top = `${first * ROW}px`;
  rows.replaceChildren(...listed.slice(first, last).map(row));
}

function row(block) {
  const facts = `${number(block.lines.length)} instr.${block.exits ? `, ${exits(block.exits)}` : ""}${block.state === "live" ? "" : `, ${block.state}`}`;
  return make("div", {
    class: block.state === "live" ? "row" : "row asleep", role: "option", "data-number": block.number,
    "aria-selected": String(block === chosen), onclick: () => go(block.number),
  },
    make("div", { class: "top" }, make("span", { class: "name" }, block.name ?? hex(block.entry)), make("span", { class: "number" }, dump.hot ? number(block.work) : "")),
    make("div", { class: "bottom" }, make("code", {}, block.name ? hex(block.entry) : ""), make("span", {}, facts)),
    dump.hot ? make("i", { class: "heat", style: `width:${100 * heat(block.work)}%` }) : undefined);
}

function reveal(block) {
  const at = listed.indexOf(block), list = byId("list");
  if (at < 0) return;
  if (at * ROW < list.scrollTop || (at + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = at * ROW - list.clientHeight / 2;
}

function step(by) {
  const at = listed.indexOf(chosen) + by;
  if (at >= 0 && at < listed.length) go(listed[at].number);
}

// -- one block ----------------------------------------------------------------------------------------------------------

function go(to) {
  if (location.hash === `#${to}`) show(to);
  else location.hash = String(to);
}

function show(to) {
  const block = byNumber.get(to);
  if (!block) return;
  chosen = block;
  const facts = [
    `${block.cache} code`, `${number(block.lines.length)} instructions`,
    `${number(block.guest_bytes ?? 0)} → ${number(block.code_bytes ?? 0)} bytes`, `translation at ${hex(block.address)}`,
  ];
  if (block.state !== "live") facts.push(block.state);
  if (block.bases) facts.push(`bases of CS and SS ${block.bases.map(hex).join(", ")}`);
  if (block.count !== undefined) facts.push(`entered ${number(block.count)} time${block.count === 1 ? "" : "s"}`);
  if (block.exits) facts.push(exits(block.exits));
  byId("block").replaceChildren(
    make("h2", {}, block.name ?? "block", " ", make("code", {}, hex(block.entry))),
    make("p", { class: "facts" }, facts.join(" · ")),
    make("h3", {}, "Where it comes from and where it leads"), graph(block),
    make("h3", {}, "Guest code and its translation"), make("div", { class: "scroll" }, code(block)));
  drawRows();
  reveal(block);
  drawMap();
}

function graph(block) {
  const from = unique((comers.get(block.number) ?? []).filter(([other]) => other !== block)
    .map(([other, link]) => ({ block: other, chained: link.chained, exits: link.exits })));
  const to = (block.links ?? []).map((link) => ({ block: byNumber.get(link.block), link, chained: link.chained, exits: link.exits }));
  const most = 9, high = 46;
  const shown = Math.max(1, Math.min(most, from.length), Math.min(most, to.length));
  const height = shown * high + (from.length > most || to.length > most ? 22 : 4);
  return inSvg(() => {
    const parts = [], middle = (shown * high) / 2;
    const column = (items, x, side) => items.slice(0, most).forEach((item, at) => {
      const count = Math.min(items.length, most), y = middle + (at - (count - 1) / 2) * high;
      const [start, end] = side < 0 ? [x + 250, 425] : [675, x];
      parts.push(make("path", {
        d: side < 0 ? `M${start} ${y} C${start + 50} ${y} ${end - 50} ${middle} ${end} ${middle}` : `M${start} ${middle} C${start + 50} ${middle} ${end - 50} ${y} ${end} ${y}`,
        class: item.chained ? "chained" : "loose",
      }, make("title", {}, item.chained ? "chained" : "not chained")));
      parts.push(node(item.block, item.link, x, y, item.chained, item.exits));
    });
    column(from, 5, -1);
    column(to, 845, 1);
    parts.push(node(block, undefined, 425, middle, true, 0, true));
    for (const [items, x] of [[from, 5], [to, 845]])
      if (items.length > most) parts.push(make("g", { class: "node" }, make("text", { x: x + 10, y: height - 6, class: "small" }, `and ${items.length - most} more`)));
    return make("svg", { class: "graph", viewBox: `0 0 1100 ${height}`, role: "group", "aria-label": "Links between blocks" }, ...parts);
  });
}

function unique(items) {
  return [...new Map(items.map((item) => [item.block.number, item])).values()];
}

function node(block, link, x, y, chained, count, here = false) {
  const entry = block ? block.entry : link.target;
  const name = (block ? block.name : link.name) ?? hex(entry);
  const small = `${hex(entry)}${!block ? "  not translated" : chained ? "" : "  not chained"}${count ? `  ${exits(count)}` : ""}`;
  const press = block && !here ? { onclick: () => go(block.number), onkeydown: (event) => event.key === "Enter" && go(block.number), tabindex: 0, role: "link" } : {};
  return make("g", { class: `node${press.onclick ? " go" : ""}${here ? " here" : ""}`, "data-number": block ? block.number : undefined, ...press },
    make("title", {}, `${name} ${small}`),
    make("rect", { x, y: y - 19, width: 250, height: 38, rx: 7 }),
    block && dump.hot ? make("rect", { class: "warm", x: x + 1, y: y + 15, width: 248 * heat(block.work), height: 3 }) : undefined,
    make("text", { x: x + 10, y: y - 3 }, name.length > 34 ? `${name.slice(0, 33)}…` : name),
    make("text", { x: x + 10, y: y + 12, class: "small" }, small));
}

function code(block) {
  const heading = ["address", "bytes", "guest instruction", "became", "what for; what must be undone there", "translated code", "in the cache", "bytes"];
  const table = make("table", {}, make("tr", {}, ...(dump.hot ? [make("th", {}, "carried out")] : []), make("th", {}, "exits"), ...heading.map((text) => make("th", {}, text))));
  for (const line of block.lines) table.append(...rowsOf(line, block));
  if (block.stubs) {
    const columns = heading.length + (dump.hot ? 2 : 1);
    table.append(make("tr", { class: "first" }, make("th", { colspan: columns }, "stubs")));
    for (const stub of block.stubs) table.append(make("tr", {}, make("td", { colspan: columns - 4 }), ...cells(stub, stub.words?.startsWith("trap") ? "callout" : "control flow", block)));
  }
  return table;
}

function rowsOf(line, block) {
  const [first, ...others] = line.code ?? [{ at: line.at, same: true }];
  const hit = query && [line.text, hex(line.address), ...(line.code ?? []).flatMap((part) => [part.text, part.words ?? ""])].some((text) => text.toLowerCase().includes(query.replace(/^0x/, "")));
  const warmth = dump.hot && line.count ? `background: color-mix(in oklab, var(--heat) ${Math.round(45 * heat(line.count))}%, transparent)` : undefined;
  const span = { rowspan: others.length + 1 };
  const guest = make("tr", { class: `first line${hit ? " hit" : ""}`, "data-address": line.address },
    ...(dump.hot ? [make("td", { class: "count", style: warmth, ...span }, number(line.count ?? 0))] : []),
    make("td", { class: "count callout", ...span }, line.exits ? number(line.exits) : ""),
    make("td", { class: "at", ...span }, hex(line.address)), make("td", { class: "bytes", ...span }, spaced(line.bytes)),
    make("td", { class: "text", ...span }, line.text),
    make("td", { class: `class ${style(line.class)}`, title: line.row, ...span }, make("i", { class: style(line.class) }), line.class),
    ...(first.same
      ? [make("td", {}), make("td", { class: "identity" }, "="), make("td", { class: "at" }, hex(first.at ?? 0)), make("td", {})]
      : cells(first, line.class, block)));
  return [guest, ...others.map((part) => make("tr", {}, ...cells(part, line.class, block)))];
}

function cells(part, kind, block) {
  const words = make("td", { class: "words" }, ...linked(part.words ?? "", block));
  if (part.recovery) words.append(make("em", {}, `${part.words ? "; " : ""}${part.recovery}`));
  return [words, make("td", { class: style(kind) }, part.text), make("td", { class: "at" }, hex(part.at)), make("td", { class: "bytes" }, spaced(part.bytes))];
}

function linked(words, block) {
  // "jump through slot 12 to c0101234 <name> (chained)": the place is a link to its block.
  const slot = /^jump through slot (\d+) to /.exec(words);
  const link = slot && (block.links ?? []).find((item) => item.slot === Number(slot[1]));
  if (!link || link.block === undefined || !byNumber.has(link.block)) return [words];
  return [words.slice(0, slot[0].length), make("a", { href: `#${link.block}`, class: "link" }, words.slice(slot[0].length))];
}

// -- what a person does -------------------------------------------------------------------------------------------------

function setUp() {
  for (const [key, [words]] of Object.entries(ORDERS))
    if (key !== "heat" || dump.hot) byId("order").append(make("option", { value: key }, words));
  byId("order").value = dump.hot ? "heat" : "address";
  let waiting;
  byId("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => { find(); if (chosen) show(chosen.number); }, 60); });
  byId("search").addEventListener("keydown", (event) => { if (event.key === "Enter" && listed.length) { find(); go(listed[0].number); } });
  byId("order").addEventListener("change", find);
  byId("list").addEventListener("scroll", drawRows, { passive: true });
  byId("map").addEventListener("click", (event) => { const block = blockOnMap(event); if (block) go(block.number); });
  byId("map").addEventListener("mousemove", (event) => {
    const block = blockOnMap(event);
    byId("map").title = block ? `${block.name ?? ""} ${hex(block.entry)}${dump.hot ? `: ${number(block.work)}` : ""}` : "";
  });
  document.addEventListener("keydown", (event) => {
    const typing = ["INPUT", "SELECT"].includes(document.activeElement.tagName);
    if (event.key === "/" && !typing) { event.preventDefault(); byId("search").focus(); }
    else if ((event.key === "j" || event.key === "ArrowDown") && !typing && (event.key === "j" || document.activeElement === byId("list"))) { event.preventDefault(); step(1); }
    else if ((event.key === "k" || event.key === "ArrowUp") && !typing && (event.key === "k" || document.activeElement === byId("list"))) { event.preventDefault(); step(-1); }
  });
  addEventListener("hashchange", () => show(Number(location.hash.slice(1))));
  addEventListener("resize", () => { drawMap(); drawRows(); });
  showTotals();
  find();
  setUpTheme();
  const asked = Number(location.hash.slice(1) || NaN);
  if (byNumber.has(asked)) show(asked);
  else if (listed.length) show(listed[0].number);
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

setUp();
