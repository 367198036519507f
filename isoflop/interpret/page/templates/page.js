"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const state = { token: null, expert: null };
  const place = (id) => document.getElementById(id);

  // All text comes into the page as text nodes, whatever it spells.
  const make = (tag, className, ...children) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children);
    return node;
  };
  // Spaces and ends of lines are made visible where a token stands alone.
  const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "␣");
  const word = (text) => make("span", "word", visible(text));
  const labelOf = (index) => data.labels[index];
  const fixed = (value, digits) => value === null ? "–" : value.toFixed(digits).replace("-", "−");

  const percent = (share) => share > 0 && share < 0.005 ? "<1 %" : `${fixed(100 * share, 0)} %`;

  const table = (caption, heads, rows) => {
    const head = make("tr", "", ...heads.map(([name, isNumber]) => {
      const cell = make("th", isNumber ? "number" : "", name);
      cell.scope = "col";
      return cell;
    }));
    const body = rows.map((row) => make("tr", "", ...row.map(
      (cell, column) => make("td", heads[column][1] ? "number" : "", ...[cell].flat()))));
    const node = make("table", "", make("caption", "", caption),
      make("thead", "", head), make("tbody", "", ...body));
    const box = make("div", "scroll", node);
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", caption);
    return box;
  };
  const excerpt = ([left, token, right]) => make("span", "excerpt",
    left.replaceAll("\n", "⏎"), make("mark", "", visible(token)),
    make("span", "after", right.replaceAll("\n", "⏎")));

  const nameOf = (index) => {
    const { layer, table: number, expert } = data.experts[index];
    return data.shared ? `layer ${layer}, expert ${expert}`
      : `layer ${layer}, channel ${number}, expert ${expert}`;
  };

  // Text of a document.
  const picker = place("document");
  data.documents.forEach((entry, index) => {
    const option = make("option", "", entry.name);
    option.value = String(index);
    picker.append(option);
  });
  const chips = new Map();
  const showDocument = (index) => {
    const { first, end } = data.documents[index];
    chips.clear();
    for (let token = first; token < end; token += 1) {
      const chip = make("button", "chip", visible(labelOf(data.tokens[token].input)));
      chip.type = "button";
      chip.tabIndex = -1;
      chip.dataset.token = String(token);
      chip.setAttribute("aria-pressed", "false");
      // From nothing at a certain prediction to the full colour at 8 nats.
      chip.style.setProperty("--loss", (0.75 * Math.min(1, data.tokens[token].loss / 8)).toFixed(3));
      chips.set(token, chip);
    }
    place("tokens").replaceChildren(...chips.values());
    showToken(first);
    light();
  };
  const light = () => {
    for (const [token, chip] of chips) {
      const lit = data.tokens[token].strongest.some(
        (rows) => rows.some((row) => row[1] === state.expert));
      chip.classList.toggle("lit", lit);
    }
    place("lit-note").hidden = state.expert === null;
  };

  // The chosen token.
  const showToken = (token) => {
    const before = chips.get(state.token);
    if (before) {
      before.tabIndex = -1;
      before.setAttribute("aria-pressed", "false");
    }
    state.token = token;
    const chip = chips.get(token);
    chip.tabIndex = 0;
    chip.setAttribute("aria-pressed", "true");
    const entry = data.tokens[token];
    place("token").replaceChildren(
      make("p", "", word(labelOf(entry.input)), ` at position ${entry.position}, followed by `,
        word(labelOf(entry.target)), ` (loss ${fixed(entry.loss, 2)} nats)`),
      make("p", "", "The model expects ", ...entry.predictions.flatMap(([label, probability]) =>
        [word(labelOf(label)), `${percent(probability)} `])),
      ...entry.strongest.map((rows, at) => strongest(data.layers[at], rows)));
    place("neighbours").replaceChildren(...neighbourLists(entry));
  };
  const strongest = (layer, rows) => table(`Layer ${layer}: strongest experts`,
    [["Channel", true], ["Expert", false], ["Share", true], ["Raises here", false]],
    rows.map(([channel, index, share, sign]) => {
      const link = make("button", "link", `#${data.experts[index].expert}`);
      link.type = "button";
      link.setAttribute("aria-label", `Show ${nameOf(index)}`);
      link.addEventListener("click", () => showExpert(index, true));
      return [String(channel), link, `${fixed(100 * share, 1)} %`, raised(index, sign)];
    }));
  // A negative coefficient turns what an expert writes around.
  const raised = (index, sign) => {
    const { detail } = data.experts[index];
    if (!detail) return "not described";
    const words = sign < 0 ? detail.lowers : detail.raises;
    return words.slice(0, 4).map(([label]) => word(labelOf(label)));
  };
  const neighbourLists = (entry) => [
    ["Any token", entry.neighbours],
    ["Where another token was read", entry.others],
  ].map(([caption, rows]) => table(caption,
    [["Cosine", true], ["Context", false], ["Document", false]],
    rows.map(([cosine, index]) => [
      fixed(cosine, 3), excerpt(data.excerpts[index]), data.excerpts[index][3]])));

  // The chosen expert.
  const showExpert = (index, scroll) => {
    state.expert = index;
    const { uses, detail } = data.experts[index];
    const parts = [make("p", "", make("strong", "", nameOf(index)),
      `: chosen ${uses.toLocaleString("en")} times at ${data.numRecorded.toLocaleString("en")} recorded tokens.`)];
    if (detail) {
      parts.push(
        make("p", "", "A positive coefficient raises ", ...words(detail.raises)),
        make("p", "", "and lowers ", ...words(detail.lowers)),
        table("Contexts with its highest scores", [["Context", false], ["Document", false]],
          detail.contexts.map((at) => [excerpt(data.excerpts[at]), data.excerpts[at][3]])));
    } else {
      parts.push(make("p", "", "It is not among the strongest of this page, so no more is kept of it."));
    }
    place("expert").replaceChildren(...parts);
    light();
    if (scroll) place("expert-heading").scrollIntoView({ block: "nearest" });
  };
  const words = (list) => list.flatMap(([label, z]) => [word(labelOf(label)), `${fixed(z, 1)} σ `]);

  // Choosing.
  const choose = (token) => {
    if (!chips.has(token)) return;
    showToken(token);
    chips.get(token).focus();
  };
  place("tokens").addEventListener("click", (event) => {
    const chip = event.target.closest(".chip");
    if (chip) choose(Number(chip.dataset.token));
  });
  // Up and down go to the chip that is nearest in the next line.
  const beside = (step) => {
    const here = chips.get(state.token).getBoundingClientRect();
    let best = state.token;
    let line = null;
    let least = Infinity;
    for (let token = state.token + step; chips.has(token); token += step) {
      const box = chips.get(token).getBoundingClientRect();
      if (Math.abs(box.top - here.top) < 2) continue;
      if (line === null) line = box.top;
      if (Math.abs(box.top - line) >= 2) break;
      const distance = Math.abs(box.left - here.left);
      if (distance < least) [best, least] = [token, distance];
    }
    return best;
  };
  place("tokens").addEventListener("keydown", (event) => {
    const { first, end } = data.documents[Number(picker.value)];
    const moves = {
      ArrowRight: () => state.token + 1, ArrowLeft: () => state.token - 1,
      ArrowDown: () => beside(1), ArrowUp: () => beside(-1),
      Home: () => first, End: () => end - 1,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    choose(moves[event.key]());
  });
  picker.addEventListener("change", () => showDocument(Number(picker.value)));

  showDocument(0);
  const firstRows = data.tokens[data.documents[0].first].strongest.flat();
  if (firstRows.length) showExpert(firstRows[0][1], false);
})();
