// No mark is lost: whatever verbs come between the begin, the landing and the end of a write, what has changed since a bitmap was empty is
// dirty in it when the write is answered.

import fc from '../helpers/property.ts'
import t from 'tap'
import { BitmapSet } from '../../src/bitmaps/bitmap-set.ts'

/** Bytes of a sector, and how many the disk has; with granules of 2 KiB the last one is cut short. */
const SECTOR = 512
const SECTORS = 29
const NAMES = ['a', 'b']

const range = fc.record({ at: fc.nat(SECTORS - 1), count: fc.integer({ min: 1, max: 9 }) })
const operation = fc.oneof(
  fc.record({ write: fc.constantFrom('begin', 'land', 'end'), range, pick: fc.nat(5) }),
  fc.record({
    verb: fc.constantFrom('add', 'remove', 'clear', 'enable', 'disable', 'freeze', 'abdicate', 'reclaim', 'merge', 'reset'),
    name: fc.constantFrom(...NAMES),
    granularity: fc.constantFrom(512, 1024, 2048),
    disabled: fc.boolean(),
    range,
  }),
)
type Operation = typeof operation extends fc.Arbitrary<infer Value> ? Value : never

interface Write {
  readonly sectors: readonly number[]
  readonly epoch: number
  landed: boolean
}

/** How each sector was, by the number of the write that it holds, at an instant. */
type Instant = number[]

class World {
  readonly set = new BitmapSet({ nodeName: 'disk', size: SECTORS * SECTOR })
  readonly #disk: Instant = Array.from({ length: SECTORS }, () => 0)
  readonly #writes: Write[] = []
  #landings = 0
  /** Since when each bitmap has recorded all changes; none where it does not. */
  readonly #since = new Map<string, Instant>()
  readonly #frozenAt = new Map<string, Instant>()

  do(operation: Operation) {
    if ('write' in operation) this.#write(operation)
    else this.#verb(operation)
    for (const [name, since] of this.#since) this.#check(name, since)
  }

  #write({ write, range, pick }: Extract<Operation, { write: string }>) {
    const { set } = this
    const all = { landed: this.#writes.filter(({ landed }) => landed), under: this.#writes.filter(({ landed }) => !landed) }
    const marks = (sectors: readonly number[]) => set.mark(sectors[0]! * SECTOR, sectors.length * SECTOR)
    if (write === 'begin') {
      const sectors = sectorsOf(range)
      this.#writes.push({ sectors, epoch: set.epoch, landed: false })
      marks(sectors)
    } else if (write === 'land') {
      const one = all.under[pick % all.under.length]
      if (!one) return
      one.landed = true
      this.#landings++
      for (const sector of one.sectors) this.#disk[sector] = this.#landings
    } else {
      const one = all.landed[pick % all.landed.length]
      if (!one) return
      if (set.epoch !== one.epoch) marks(one.sectors)
      this.#writes.splice(this.#writes.indexOf(one), 1)
    }
  }

  #verb({ verb, name, granularity, disabled, range }: Extract<Operation, { verb: string }>) {
    const { set } = this
    const bitmap = set.find(name)
    const now = [...this.#disk]
    if (verb === 'add') {
      if (bitmap) return
      set.add({ name, granularity, disabled })
      if (!disabled) this.#since.set(name, now)
      return
    }
    if (!bitmap) return
    if (verb === 'abdicate' || verb === 'reclaim') {
      if (!bitmap.successor) return
      bitmap[verb]()
      if (verb === 'abdicate' && bitmap.recording) this.#since.set(name, this.#frozenAt.get(name)!)
      return
    }
    if (bitmap.busy) return
    switch (verb) {
      case 'freeze':
        this.#frozenAt.set(name, now)
        return bitmap.freeze()
      case 'reset': {
        // Whoever resets has read what is there now, and cares for whole granules only.
        const sectors = sectorsOf(range)
        bitmap.reset(sectors[0]! * SECTOR, sectors.length * SECTOR)
        const since = this.#since.get(name)
        for (const sector of sectors) if (since && !bitmap.isDirty(sector * SECTOR)) since[sector] = now[sector]!
        return
      }
      case 'merge':
        return set.merge(
          bitmap,
          [...set].filter(other => !other.busy),
        )
      case 'enable':
        if (!bitmap.recording) this.#since.set(name, now)
        break
      case 'disable':
      case 'remove':
        this.#since.delete(name)
        break
      case 'clear':
        if (bitmap.recording) this.#since.set(name, now)
    }
    set[verb](bitmap)
  }

  #check(name: string, since: Instant) {
    const bitmap = this.set.get(name)
    const unanswered = new Set(this.#writes.flatMap(({ sectors }) => sectors))
    for (const [sector, version] of this.#disk.entries()) {
      if (version === since[sector] || unanswered.has(sector)) continue
      if (!bitmap.isDirty(sector * SECTOR) && !bitmap.successor?.isDirty(sector * SECTOR)) {
        throw new Error(`'${name}' lost the mark of sector ${sector}`)
      }
    }
  }
}

const sectorsOf = ({ at, count }: { at: number; count: number }) =>
  Array.from({ length: Math.min(count, SECTORS - at) }, (_, index) => at + index)

t.test('what a write has changed is dirty when it is answered, whatever verbs came meanwhile', async () => {
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 60, size: 'max' }), operations => {
      const world = new World()
      for (const operation of operations) world.do(operation)
    }),
    { numRuns: 3000 },
  )
})
