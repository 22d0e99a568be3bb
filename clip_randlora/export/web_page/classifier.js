// The classifier, for this page and for your own:
//
//     import { Classifier } from "./classifier.js";
//     const classifier = await Classifier.load();
//     const { before, after, unknown } = await classifier.classify(file);

/** Answers for images, in a worker. */
export class Classifier {
  #worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #asked = 0;

  /**
   * Load the classifier beside this file.
   * @param {(share: number) => void} onProgress told how much of it has come, 0 to 1
   */
  static async load(onProgress = () => {}) {
    const classifier = new Classifier();
    classifier.#worker.onmessage = ({ data }) => {
      if ("come" in data) onProgress(data.come);
      else classifier.#settle(data);
    };
    classifier.#worker.onerror = () => {
      for (const id of classifier.#waiting.keys()) {
        classifier.#settle({ id, error: "The page could not start its classifier; reload it." });
      }
    };
    classifier.facts = await classifier.#ask("load");
    return classifier;
  }

  /**
   * Classify an image.
   * @param {Blob|ImageBitmap} image a file, or what a camera shows; a bitmap is used up
   * @returns {Promise<{before: Map<string, number>, after: Map<string, number>, unknown: boolean,
   *   milliseconds: number}>} probabilities by class, the most probable first; whether it is of none
   */
  async classify(image) {
    const answer = await this.#ask("classify", image, image instanceof ImageBitmap ? [image] : []);
    return { ...answer, before: this.#byClass(answer.before), after: this.#byClass(answer.after) };
  }

  #byClass(probabilities) {
    const pairs = this.facts.classes.map((name, index) => [name, probabilities[index]]);
    // a map keeps the order, also of classes that are numbers
    return new Map(pairs.sort(([, one], [, other]) => other - one));
  }

  #ask(task, given = null, transferred = []) {
    return new Promise((resolve, reject) => {
      this.#waiting.set(++this.#asked, { resolve, reject });
      this.#worker.postMessage({ id: this.#asked, task, given }, transferred);
    });
  }

  #settle({ id, result, error }) {
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) resolve(result);
    else reject(new Error(error));
  }
}
