// Beta and the weights of the checkpoints as sliders. They change the weights of the terms; the server ranks again.
import { button, el } from "./views/dom.js";
import { isBase, minus, shortNames } from "./views/numbers.js";

export class Sliders {
  constructor(box, change) {
    Object.assign(this, { box, change, key: null });
  }

  // method: { name, terms, weights, beta: names of the base's terms }; weights: those in force.
  show(method, weights) {
    const key = JSON.stringify([method.name, method.terms]);
    if (key !== this.key) {
      this.key = key;
      this.method = method;
      this.build(weights);
    }
    this.weights = [...weights];
    this.set(weights);
  }

  build(weights) {
    const { terms, beta } = this.method, names = shortNames(terms);
    const plain = terms.map((name, i) => i).filter((i) => !beta.includes(terms[i]));
    const largest = Math.max(1e-12, ...this.method.weights.map(Math.abs));
    this.inputs = [];
    if (beta.length) this.inputs.push(this.slider("beta", "subtracts the base model’s own influence", -1, 1.5, 0.05, () => this.betaOf(this.weights), (value) => this.withBeta(value)));
    for (const i of plain)
      this.inputs.push(this.slider(`${isBase(terms[i]) ? "base" : "checkpoint"} ${names[i]}`, "", 0, 2 * largest, largest / 50, () => this.weights[i], (value) => {
        const before = this.betaOf(this.weights);
        this.weights[i] = value;
        if (beta.length > 1) this.withBeta(before);
      }));
    const reset = button("Back to the method’s own", () => this.change(null), { class: "link" });
    this.box.replaceChildren(...this.inputs.map(({ node }) => node), reset);
    this.set(weights);
  }

  slider(name, told, low, high, step, read, write) {
    const shown = el("output", {}, "");
    const input = el("input", { type: "range", min: low, max: high, step, on: { input: () => {
      write(Number(input.value));
      this.set(this.weights);
      this.change([...this.weights]);
    } } });
    return { input, shown, read, node: el("label", { class: "slider" }, el("span", {}, name, told && el("span", { class: "sr" }, `: ${told}`)), input, shown) };
  }

  set(weights) {
    this.weights = [...weights];
    for (const { input, shown, read } of this.inputs) {
      const value = read();
      if (document.activeElement !== input || Math.abs(Number(input.value) - value) > Number(input.step)) {
        if (value < Number(input.min)) input.min = value;
        if (value > Number(input.max)) input.max = value;
        input.value = value;
      }
      shown.textContent = minus(Math.abs(value) < 0.01 && value ? value.toPrecision(2) : String(Math.round(1000 * value) / 1000));
    }
  }

  // One base term has the weight -beta; several have -beta times their checkpoint's weight.
  betaOf(weights) {
    const { terms, beta } = this.method;
    if (beta.length === 1) return -weights[terms.indexOf(beta[0])] || 0;
    for (const name of beta) {
      const own = weights[terms.indexOf(name.replace(/ x base$/, ""))];
      if (own) return -weights[terms.indexOf(name)] / own;
    }
    return 0;
  }

  withBeta(value) {
    const { terms, beta } = this.method;
    for (const name of beta) {
      const own = beta.length === 1 ? 1 : this.weights[terms.indexOf(name.replace(/ x base$/, ""))] || 0;
      this.weights[terms.indexOf(name)] = -value * own;
    }
  }
}
