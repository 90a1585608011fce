// The one point in latent space that every view shows and moves.

/** work, one call at a time; of the calls that come meanwhile only the newest is done. */
export function latest(work) {
  let next;
  let busy = false;
  return async (...given) => {
    next = given;
    if (busy) return;
    busy = true;
    try {
      while (next) {
        const now = next;
        next = undefined;
        await work(...now);
      }
    } finally {
      busy = false;
    }
  };
}

/** work, once in a frame however often it is called. */
export function perFrame(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      work();
    });
  };
}

/** Says "move" when z changes, "image" when its image is there, and "label" when the model's label changes. */
export class Point extends EventTarget {
  #follow;

  constructor(model, z, codes) {
    super();
    this.z = z;
    this.codes = codes;
    this.#follow = latest(async () => {
      this.image = await model.decode(this.z);
      this.dispatchEvent(new Event("image"));
    });
  }

  /** codes are those of z; without, z is no code's. */
  move(z, codes) {
    this.z = z;
    this.codes = codes;
    this.dispatchEvent(new Event("move"));
    return this.#follow();
  }

  /** Change one latent. */
  set(index, value) {
    return this.move(this.z.with(index, value));
  }
}
