// BitmapSet against a simple model: plain objects for the states, a Set of granule numbers for the marks.

import fc from '../helpers/property.ts'
import t from 'tap'
import { BitmapSet } from '../../src/bitmaps/bitmap-set.ts'
import { checkAllows } from '../../src/bitmaps/check-allows.ts'
import type { DirtyBitmap } from '../../src/bitmaps/dirty-bitmap.ts'
import { messageOf } from '../../src/base/errors.ts'

interface Model {
  name: string | undefined
  granularity: number
  recording: boolean
  held: boolean
  readOnly: boolean
  inconsistent: boolean
  granules: Set<number>
  successor?: Set<number>
}

const NAMES = ['a', 'b', 'c', 'd']
const SIZES = [0, 1, 511, 512, 65536, 262144 + 1, 1_000_000]

const operation = fc.record({
  kind: fc.constantFrom(
    ...([
      'write',
      'write',
      'begin',
      'begin',
      'end',
      'add',
      'add',
      'remove',
      'clear',
      'enable',
      'disable',
      'merge',
      'reset',
    ] as const),
    ...([
      'freeze',
      'abdicate',
      'reclaim',
      'hold',
      'release',
      'restore',
      'truncate',
      'readOnly',
      'reserve',
      'start',
      'cancel',
    ] as const),
  ),
  name: fc.constantFrom(...NAMES),
  others: fc.subarray(NAMES),
  granularity: fc.constantFrom(512, 1024, 4096, 65536, 1 << 20, undefined, 511, 768),
  offset: fc.nat(1_100_000),
  length: fc.oneof(fc.integer({ min: 1, max: 3000 }), fc.integer({ min: 1, max: 400_000 })),
  flag: fc.boolean(),
  size: fc.constantFrom(...SIZES),
})
type Operation = typeof operation extends fc.Arbitrary<infer Value> ? Value : never

/** Some names are taken at first. */
const begin = fc.tuple(...['a', 'b', 'c'].map(name => operation.map(op => ({ ...op, kind: 'add' as const, name }))))

/** The set and the model of it, side by side. */
class Pair {
  readonly set: BitmapSet
  bitmaps: Model[] = []
  reserved: Model[] = []
  readonly #reservedReal: DirtyBitmap[] = []
  readonly #holds = new Map<string, Disposable>()
  /** Moves with every verb that did something. */
  #verbs = 0
  readonly #inFlight: { offset: number; length: number; verbs: number; epoch: number }[] = []

  constructor(public size: number) {
    this.set = new BitmapSet({ nodeName: 'disk', size, clusterSize: 65536 })
  }

  find = (name: string) => this.bitmaps.find(bitmap => bitmap.name === name)

  granulesOf = (offset: number, length: number, granularity: number) => {
    const granules: number[] = []
    const end = Math.min(offset + length, this.size)
    for (let index = Math.floor(offset / granularity); index * granularity < end && length > 0; index++) granules.push(index)
    return granules
  }

  markModel(offset: number, length: number) {
    for (const bitmap of this.bitmaps) {
      if (!bitmap.recording) continue
      for (const granule of this.granulesOf(offset, length, bitmap.granularity))
        (bitmap.successor ?? bitmap.granules).add(granule)
    }
  }

  refusal(bitmap: Model | undefined, name: string, states: string): string | undefined {
    if (!bitmap) return `Dirty bitmap '${name}' not found`
    if (states.includes('b') && (bitmap.held || bitmap.successor)) {
      return `Bitmap '${name}' is currently in use by another operation and cannot be used`
    }
    if (states.includes('r') && bitmap.readOnly) return `Bitmap '${name}' is readonly and cannot be modified`
    if (states.includes('i') && bitmap.inconsistent) return `Bitmap '${name}' is inconsistent and cannot be used`
    return undefined
  }

  /** What the model expects to be said, and does. */
  model(op: Operation): string | undefined {
    const { name, others, granularity, flag } = op
    const bitmap = this.find(name)
    const [offset, length] = this.rangeOf(op)
    const verb = (states: string, effect: (bitmap: Model) => void) => {
      const refused = this.refusal(bitmap, name, states)
      if (refused !== undefined) return refused
      effect(bitmap!)
      this.#verbs++
      return undefined
    }
    switch (op.kind) {
      case 'write':
        this.markModel(offset, length)
        return undefined
      case 'begin':
        this.#inFlight.push({ offset, length, verbs: this.#verbs, epoch: this.set.epoch })
        this.markModel(offset, length)
        return undefined
      case 'end': {
        const [write] = this.#inFlight
        if (write && write.verbs !== this.#verbs) this.markModel(write.offset, write.length)
        return undefined
      }
      case 'add':
      case 'reserve': {
        const chosen = granularity ?? 65536
        if (chosen < 512 || Math.log2(chosen) % 1 !== 0) return 'Granularity must be power of 2 and at least 512'
        if (bitmap || this.reserved.some(other => other.name === name)) return `Bitmap already exists: ${name}`
        const fresh = { name, granularity: chosen, recording: !flag, held: false, readOnly: false, inconsistent: false }
        if (op.kind === 'reserve') this.reserved.push({ ...fresh, granules: new Set() })
        else {
          this.bitmaps.unshift({ ...fresh, granules: new Set() })
          this.#verbs++
        }
        return undefined
      }
      case 'start':
      case 'cancel': {
        const reserved = this.reserved.shift()
        if (reserved && op.kind === 'start') {
          this.bitmaps.unshift(reserved)
          this.#verbs++
        }
        return undefined
      }
      case 'restore':
        if (bitmap || this.reserved.some(other => other.name === name)) return undefined
        this.bitmaps.unshift({
          name,
          granularity: 4096,
          recording: false,
          held: false,
          readOnly: !flag,
          inconsistent: flag,
          granules: new Set(),
        })
        this.#verbs++
        return undefined
      case 'remove':
        return verb('br', gone => (this.bitmaps = this.bitmaps.filter(other => other !== gone)))
      case 'clear':
        return verb('bri', bitmap => bitmap.granules.clear())
      case 'enable':
        return verb('bi', bitmap => (bitmap.recording = true))
      case 'disable':
        return verb('bi', bitmap => (bitmap.recording = false))
      case 'merge': {
        if (!bitmap) return this.refusal(bitmap, name, '')
        for (const other of others) if (!this.find(other)) return this.refusal(undefined, other, '')
        for (const other of others) {
          const refused = this.refusal(bitmap, name, 'bri') ?? this.refusal(this.find(other), other, 'bi')
          if (refused !== undefined) return refused
        }
        for (const other of others) {
          const from = this.find(other)!
          for (const granule of from.granules) {
            const bytes = this.granulesOf(granule * from.granularity, from.granularity, bitmap.granularity)
            for (const marked of bytes) bitmap.granules.add(marked)
          }
          this.#verbs++
        }
        return undefined
      }
      case 'reset':
        if (!bitmap) return undefined
        for (const granule of bitmap.granules) {
          const start = granule * bitmap.granularity
          const end = Math.min(start + bitmap.granularity, this.size)
          if (start >= offset && end <= offset + length) bitmap.granules.delete(granule)
        }
        this.#verbs++
        return undefined
      case 'freeze':
        return verb('bri', bitmap => (bitmap.successor = new Set()))
      case 'abdicate':
      case 'reclaim':
        if (!bitmap?.successor) return undefined
        if (op.kind === 'abdicate') bitmap.granules = bitmap.successor
        else for (const granule of bitmap.successor) bitmap.granules.add(granule)
        delete bitmap.successor
        this.#verbs++
        return undefined
      case 'hold':
        if (bitmap) bitmap.held = true
        return undefined
      case 'release':
        if (bitmap) bitmap.held = false
        return undefined
      case 'readOnly':
        if (bitmap) bitmap.readOnly = flag
        return undefined
      case 'truncate': {
        const before = this.size
        this.size = op.size
        for (const bitmap of [...this.bitmaps, ...this.reserved]) {
          const count = Math.ceil(op.size / bitmap.granularity)
          for (const granules of [bitmap.granules, bitmap.successor ?? bitmap.granules]) {
            for (const granule of granules) if (granule >= count) granules.delete(granule)
          }
        }
        if (op.size > before) this.markModel(before, op.size - before)
        this.#verbs++
        return undefined
      }
    }
  }

  real(op: Operation) {
    const { set } = this
    const { name, granularity, flag: disabled } = op
    const bitmap = set.find(name)
    const [offset, length] = this.rangeOf(op)
    switch (op.kind) {
      case 'write':
      case 'begin':
        return set.mark(offset, length)
      case 'end': {
        const write = this.#inFlight.shift()
        if (write && write.epoch !== set.epoch) set.mark(write.offset, write.length)
        return
      }
      case 'add':
        return void set.add({ name, granularity, disabled })
      case 'reserve':
        return void this.#reservedReal.push(set.reserve({ name, granularity, disabled }, this))
      case 'start':
      case 'cancel': {
        const reserved = this.#reservedReal.shift()
        if (reserved) set[op.kind](reserved)
        return
      }
      case 'restore': {
        const state = { name, granularity: 4096, disabled: true, readOnly: !op.flag, inconsistent: op.flag }
        if (!set.find(name) && !set.find(name, this)) set.restore(state)
        return
      }
      case 'remove':
      case 'clear':
      case 'enable':
      case 'disable':
        return set[op.kind](set.get(name))
      case 'merge':
        return set.merge(
          set.get(name),
          op.others.map(other => set.get(other)),
        )
      case 'reset':
        return bitmap?.reset(offset, length)
      case 'freeze':
        checkAllows(set.get(name), 'write')
        return set.get(name).freeze()
      case 'abdicate':
      case 'reclaim':
        if (bitmap?.successor) bitmap[op.kind]()
        return
      case 'hold':
        if (bitmap && !this.#holds.has(name)) this.#holds.set(name, bitmap.hold(this))
        return
      case 'release':
        this.#holds.get(name)?.[Symbol.dispose]()
        this.#holds.delete(name)
        return
      case 'readOnly':
        if (bitmap) bitmap.readOnly = op.flag
        return
      case 'truncate':
        return set.truncate(op.size)
    }
  }

  rangeOf({ offset, length }: Operation): [offset: number, length: number] {
    const from = Math.min(offset, Math.max(0, this.size - 1))
    return [from, Math.min(length, this.size - from)]
  }

  check() {
    const expected = this.bitmaps.flatMap(bitmap => {
      const { name, granularity, recording, held, inconsistent, granules, successor } = bitmap
      const info = (granules: Set<number>, busy: boolean, name?: string) => ({
        ...(name !== undefined && { name }),
        count: granules.size * granularity,
        granularity,
        recording,
        busy,
        persistent: false,
        ...(inconsistent && { inconsistent: true }),
      })
      const own = info(granules, held || successor !== undefined, name)
      return successor ? [info(successor, false), own] : [own]
    })
    const found = [...this.set].map(bitmap => bitmap.info())
    if (JSON.stringify(found) !== JSON.stringify(expected)) {
      throw new Error(`${JSON.stringify(found, null, 1)}\nexpected\n${JSON.stringify(expected, null, 1)}`)
    }
    for (const model of this.bitmaps) this.#checkMarks(this.set.get(model.name!), model)
  }

  #checkMarks(bitmap: DirtyBitmap, model: Model) {
    const dirty = new Set<number>()
    for (const { offset, length } of bitmap.dirtyRanges({ offset: 0, length: this.size })) {
      if (offset > 0 && bitmap.isDirty(offset - 1)) throw new Error('a range could be longer')
      for (const granule of this.granulesOf(offset, length, bitmap.granularity)) dirty.add(granule)
    }
    const missing = [...model.granules].filter(granule => !dirty.has(granule))
    if (missing.length > 0 || dirty.size !== model.granules.size) throw new Error(`${model.name}: lost ${missing.join()}`)
  }
}

t.test('a set of bitmaps does what its model does, whatever comes in whatever order', async () => {
  fc.assert(
    fc.property(
      fc.constantFrom(...SIZES),
      begin,
      fc.array(operation, { maxLength: 60, size: 'max' }),
      (size, begin, operations) => {
        const pair = new Pair(size)
        for (const op of [...begin, ...operations]) {
          const expected = pair.model(op)
          let said: string | undefined
          const sizeBefore = pair.size
          try {
            // The model has the new size already.
            pair.real(op)
          } catch (error) {
            said = messageOf(error)
          }
          if (said !== expected) throw new Error(`${op.kind} at ${sizeBefore}: said ${said}, expected ${expected}`)
          pair.check()
        }
      },
    ),
    { numRuns: 600 },
  )
})
