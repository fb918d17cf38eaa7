"use strict";
// Shows the responses with filters, a dozen at a time. All text goes in by textContent: none is ever read as markup.
const PAGE = 12, rows = JSON.parse(document.getElementById("responses").textContent);
const verdict = r => r.scored ? (r.true_reward === 1 ? "right" : r.true_reward === 0 ? "wrong" : "in part") : "unscored";
const FILTERS = {  // label: what a response is filed under
  "Setting": r => r.setting, "Arm": r => r.arm, "Run": r => r.run, "From": r => r.where, "Step": r => r.step,
  "Problem": r => r.problem, "True reward": verdict, "Reward": r => r.reward === null ? "none" : String(+r.reward.toPrecision(3)),
  "Faithful": r => r.faithful === null ? "not judged" : r.faithful,
};
const chosen = {}, list = document.getElementById("list"), count = document.getElementById("count");
let first = 0;

function make(tag, parent, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  parent.append(node);
  return node;
}

function matches(row) {
  return Object.entries(chosen).every(([label, value]) => value === "" || String(FILTERS[label](row)) === value);
}

function show() {
  const matching = rows.filter(matches);
  first = Math.max(0, Math.min(first, Math.floor((matching.length - 1) / PAGE) * PAGE));
  const page = matching.slice(first, first + PAGE);
  count.textContent = matching.length ? `${first + 1} to ${first + page.length} of ${matching.length}` : "none";
  document.getElementById("back").disabled = first === 0;
  document.getElementById("on").disabled = first + PAGE >= matching.length;
  list.replaceChildren();
  for (const row of page) card(row);
}

function card(row) {
  const box = make("article", list, undefined, "sample");
  make("p", box, [row.arm, row.setting, row.run === row.arm ? "" : row.run, row.where, `step ${row.step}`,
    `sample ${row.sample}`].filter(Boolean).join(" · "), "soft");
  make("pre", box, row.prompt, "soft");
  const text = make("pre", box, row.head);
  text.dir = "ltr";
  text.tabIndex = 0;
  if (row.left_out) {
    make("span", text, `\n … ${row.left_out.toLocaleString("en")} characters left out … \n`, "cut");
    text.append(row.rest);
  }
  const summary = make("p", box, undefined, "soft");
  make("b", summary, verdict(row), row.true_reward === 1 ? "gained" : "fell");
  const facts = [row.scored ? "" : row.cause, `answer ${row.answer ?? "none"}`, `truth ${row.truth}`,
    row.label !== null && row.label !== row.truth ? `label ${row.label}` : "",
    row.reward === null ? "" : `reward ${FILTERS.Reward(row)}`, row.faithful === null ? "" : `faithful ${row.faithful}`,
    `${row.tokens} tokens, stop: ${row.stop}`];
  summary.append(facts.filter(Boolean).map(fact => ` · ${fact}`).join(""));
}

const order = new Intl.Collator("en", { numeric: true }).compare;
for (const [label, valueOf] of Object.entries(FILTERS)) {
  const values = [...new Set(rows.map(row => String(valueOf(row))))].sort(order);
  if (values.length < 2 || (label === "Run" && rows.every(row => row.run === row.arm))) continue;
  const select = make("select", make("label", document.getElementById("choices"), label));
  select.name = label;
  make("option", select, "all").value = "";
  for (const value of values) make("option", select, value.length > 60 ? value.slice(0, 59) + "…" : value).value = value;
  select.addEventListener("change", () => { chosen[label] = select.value; first = 0; show(); });
}
document.getElementById("back").addEventListener("click", () => { first -= PAGE; show(); });
document.getElementById("on").addEventListener("click", () => { first += PAGE; show(); });
show();

// A table that is wider than its box says that it scrolls (.wide in page.css).
const boxes = document.querySelectorAll(".scroll");
const watch = new ResizeObserver(() => {
  for (const box of boxes) box.classList.toggle("wide", box.scrollWidth > box.clientWidth + 1);
});
for (const box of boxes) watch.observe(box);
