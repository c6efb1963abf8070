// Power cuts of a qcow2 image in a simulated disk: what may be left of it, and the judge of that.

import { endOf, type Range } from '../../src/base/ranges.ts'
import type { BlockIo, Extent } from '../../src/block/driver.ts'
import type { CheckResult } from '../../src/drivers/qcow2/check/findings.ts'
import { checkImage } from '../../src/drivers/qcow2/check/check.ts'
import type { Qcow2Node } from '../../src/drivers/qcow2/qcow2-node.ts'
import { listSnapshots, openSnapshot } from '../../src/drivers/qcow2/snapshots.ts'
import { readAt } from './block-node-suite.ts'
import { openQcow2 } from './qcow2-image.ts'
import { randomBytes } from './random-bytes.ts'
import type { SimulatedDisk } from './simulated-disk.ts'

const BLOCK = 512

/** What an image may hold: a byte is that of the last flush, or of something that was begun since. */
export class Possible {
  #flushed: Buffer
  #since: (Range & { readonly data: Buffer | undefined })[] = []
  #sizes: number[]
  /** By name; and those that are being made or deleted, which may be there or not. */
  #snapshots = new Map<string, { readonly content: Buffer; readonly sure: boolean }>()

  constructor(content: Buffer) {
    this.#flushed = Buffer.from(content)
    this.#sizes = [content.length]
  }

  /** Discarded bytes (`data` undefined) may be zero. */
  begin(range: Range, data?: Buffer) {
    this.#since.push({ ...range, data })
  }

  beginResize(size: number) {
    this.#sizes.push(size)
    for (const from of this.#sizes) if (from > size) this.begin({ offset: size, length: from - size })
  }

  beginSnapshot(name: string, content: Buffer) {
    this.#snapshots.set(name, { content: Buffer.from(content), sure: false })
  }

  flushed(content: Buffer) {
    this.#flushed = Buffer.from(content)
    this.#sizes = [content.length]
    this.#since = []
  }

  /** It is being deleted. */
  unsureOfSnapshot(name: string) {
    this.#snapshots.set(name, { ...this.#snapshots.get(name)!, sure: false })
  }

  /** Of the snapshot whose making or deleting has ended. */
  snapshotIs(name: string, there: boolean) {
    const snapshot = this.#snapshots.get(name)
    if (snapshot && there) this.#snapshots.set(name, { ...snapshot, sure: true })
    else this.#snapshots.delete(name)
  }

  /** What is wrong with what was found; undefined when nothing is. */
  async objection(node: Qcow2Node): Promise<string | undefined> {
    if (!this.#sizes.includes(node.size)) return `the disk has ${node.size} bytes, and not ${this.#sizes.join(' or ')}`
    const found = await readAt(node, 0, node.size)
    const wrong = this.#wrong(found)
    if (wrong !== undefined) return `byte ${wrong} is ${found[wrong]}: neither what was flushed nor what was written since`
    const names = (await listSnapshots(node.image)).map(({ name }) => name)
    for (const name of names) {
      const content = this.#snapshots.get(name)?.content
      if (!content) return `there is a snapshot '${name}'`
      const snapshot = await openSnapshot(node.image, name)
      if (!(await readAt(snapshot, 0, snapshot.size)).equals(content)) return `snapshot '${name}' has changed`
    }
    for (const [name, { sure }] of this.#snapshots) if (sure && !names.includes(name)) return `snapshot '${name}' is gone`
    return undefined
  }

  /** The first byte that nobody wrote. */
  #wrong(found: Buffer): number | undefined {
    for (let from = 0; from < found.length; from += BLOCK) {
      const to = Math.min(from + BLOCK, found.length)
      if (found.subarray(from, to).equals(this.#flushed.subarray(from, to))) continue
      const here = this.#since.filter(one => one.offset < to && endOf(one) > from)
      for (let at = from; at < to; at++) {
        if (found[at] === (this.#flushed[at] ?? 0)) continue
        const explained = here.some(
          one => at >= one.offset && at < endOf(one) && found[at] === (one.data ? one.data[at - one.offset] : 0),
        )
        if (!explained) return at
      }
    }
    return undefined
  }

  copy() {
    const copy = new Possible(this.#flushed)
    copy.#since = [...this.#since]
    copy.#sizes = [...this.#sizes]
    copy.#snapshots = new Map(this.#snapshots)
    return copy
  }
}

export interface Cut {
  readonly bytes: Buffer
  /** Of the external data file. */
  readonly data?: Buffer | undefined
  readonly possible: Possible
}

/** Images as they may be after a cut, `each` of them at about every `every`th change of the disk. */
export class Cuts {
  readonly images: Cut[] = []
  #changes = 0

  constructor(
    private readonly disk: SimulatedDisk,
    possible: Possible,
    {
      every,
      each = 1,
      seed,
      data,
    }: { readonly every: number; readonly each?: number; readonly seed: number; readonly data?: SimulatedDisk | undefined },
  ) {
    const changed = () => {
      if ((this.#changes++ + seed) % every !== 0) return
      const copy = possible.copy()
      for (let one = 0; one < each; one++) {
        const bytes = disk.afterCrash(seed + this.#changes * 31 + one)
        if (data) this.images.push({ bytes, data: data.afterCrash(seed + this.#changes * 37 + one), possible: copy })
        else if (!this.images.at(-1)?.bytes.equals(bytes)) this.images.push({ bytes, possible: copy })
      }
    }
    disk.onChange = changed
    if (data) data.onChange = changed
  }

  end() {
    this.disk.onChange = () => undefined
  }
}

/** A file in memory that answers at once: there are ten thousand of them. */
class Bytes implements BlockIo {
  readonly filename = undefined

  constructor(public bytes: Buffer) {}

  get size() {
    return this.bytes.length
  }

  read(offset: number, into: Buffer) {
    into.set(this.bytes.subarray(offset, offset + into.length))
    return DONE
  }

  write(offset: number, data: Buffer) {
    this.bytes.set(data, offset)
    return DONE
  }

  zero({ offset, length }: Range) {
    this.bytes.fill(0, offset, offset + length)
    return DONE
  }

  discard() {
    return DONE
  }

  flush() {
    return DONE
  }

  async *extents(range: Range): AsyncGenerator<Extent> {
    yield { ...range, allocated: true, zero: false }
  }

  resize(size: number) {
    this.bytes = Buffer.concat([this.bytes.subarray(0, size)], size)
    return DONE
  }
}

const DONE = Promise.resolve()

/** Throws where the image does not open, contradicts itself, or holds what it cannot; with `goOn` also where it cannot be used again. */
export async function judge(
  { bytes, data, possible }: Cut,
  { backing, goOn = true }: { backing?: Buffer | undefined; goOn?: boolean } = {},
) {
  const file = new Bytes(goOn ? Buffer.from(bytes) : bytes)
  const dataFile = data && new Bytes(data)
  const node = await openQcow2(file, { dataFile, backing: backing && new Bytes(backing) })
  refuse(await checkImage(node.image), 'after a power cut')
  const objection = await possible.objection(node)
  if (objection !== undefined) throw new Error(`after a power cut ${objection}`)
  if (!goOn) return
  if (node.size > 0) await node.write(0, randomBytes(Math.min(5000, node.size), 99))
  await checkImage(node.image, 'all')
  await node[Symbol.asyncDispose]()
  const again = await openQcow2(file, { dataFile, readOnly: true })
  refuse(await checkImage(again.image), 'used after a power cut', true)
}

function refuse({ corruptions, leaks, messages }: CheckResult, when: string, leaksToo = false) {
  if (corruptions > 0 || (leaksToo && leaks > 0))
    throw new Error(
      `${when}: ${messages
        .filter(message => leaksToo || message.startsWith('ERROR'))
        .slice(0, 3)
        .join('; ')}`,
    )
}
