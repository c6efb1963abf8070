// Memory that begins at a page, for reads and writes that go around the page cache: the kernel wants them so, and Node's own begin anywhere.
// The memory of a WebAssembly program is mapped by itself, hence begins at a page, and needs no native help.

import { OutOfMemory } from './system-fault.ts'

const WASM_PAGE = 64 << 10

/** What of TypeScript's lib.dom is needed, which has no place here otherwise. */
interface WebAssemblyMemory {
  readonly buffer: ArrayBuffer
}

const { Memory } = (
  globalThis as unknown as {
    WebAssembly: { Memory: new (pages: { initial: number; maximum: number }) => WebAssemblyMemory }
  }
).WebAssembly

/** So many pieces of so many bytes, a multiple of WASM_PAGE; who finds none waits. What was never used takes no memory. */
export class Slabs {
  readonly #free: Buffer[] = []
  readonly #waiting: ((slab: Buffer) => void)[] = []

  constructor(
    count: number,
    readonly length: number,
  ) {
    const memory = reserve((count * length) / WASM_PAGE)
    for (let at = count - 1; at >= 0; at--) this.#free.push(Buffer.from(memory, at * length, length))
  }

  async use<T>(how: (slab: Buffer) => Promise<T>): Promise<T> {
    // The one that was given back last, so that of those that a quiet disk has only a few are ever touched.
    const slab = this.#free.pop() ?? (await new Promise<Buffer>(resolve => this.#waiting.push(resolve)))
    try {
      return await how(slab)
    } finally {
      const next = this.#waiting.shift()
      if (next) next(slab)
      else this.#free.push(slab)
    }
  }
}

function reserve(pages: number) {
  try {
    return new Memory({ initial: pages, maximum: pages }).buffer
  } catch (error) {
    throw new OutOfMemory(
      'no room in the address space for reads and writes around the page cache; raise the limit (ulimit -v), or leave out cache.direct',
      { cause: error },
    )
  }
}
