// The blkdebug filter: fails what its rules say, when they say so, and takes only requests of certain sizes, for tests of what is above it.
//
// A rule to inject errors lies idle until its event. An event that wakes any puts them in the place of those that were awake before. From
// then on each request that fits one of them fails, until another event, or once. A rule with a state counts only in that state; the
// first is 1, and `set-state` leads from one to another. All of it is as in QEMU's block/blkdebug.c.
//
// Events come from formats above (block/debug-event.ts) and from the requests themselves. QEMU's formats do some things in other steps
// than ours; a rule for an event that never comes would test nothing, so it is refused.

import { constants } from 'node:os'
import { z } from 'zod'
import { InvalidParameter, NotSupported } from '../base/errors.ts'
import { alignDown, alignUp, endOf, pieces, type Range } from '../base/ranges.ts'
import { systemFault } from '../base/system-fault.ts'
import { debugEvents, type DebugEvent } from '../block/debug-event.ts'
import type { BlockDriver, BlockIo, WriteFlags, ZeroFlags } from '../block/driver.ts'
import { Permission } from '../block/permissions.ts'
import { Passthrough } from './passthrough.ts'

const SECTOR = 512

/** Of the node itself; `none`: that it has been opened. */
const OWN_EVENTS = ['none', 'pwritev', 'pwritev_zero', 'pwritev_done', 'flush_to_os', 'flush_to_disk'] as const

type Event = DebugEvent | (typeof OWN_EVENTS)[number]

const FAMILIAR: ReadonlySet<string> = new Set([...debugEvents, ...OWN_EVENTS])

/** QEMU's BlkdebugEvent. */
const event = z.enum([
  'l1_update',
  'l1_grow_alloc_table',
  'l1_grow_write_table',
  'l1_grow_activate_table',
  'l2_load',
  'l2_update',
  'l2_update_compressed',
  'l2_alloc_cow_read',
  'l2_alloc_write',
  'read_aio',
  'read_backing_aio',
  'read_compressed',
  'write_aio',
  'write_compressed',
  'vmstate_load',
  'vmstate_save',
  'cow_read',
  'cow_write',
  'reftable_load',
  'reftable_grow',
  'reftable_update',
  'refblock_load',
  'refblock_update',
  'refblock_update_part',
  'refblock_alloc',
  'refblock_alloc_hookup',
  'refblock_alloc_write',
  'refblock_alloc_write_blocks',
  'refblock_alloc_write_table',
  'refblock_alloc_switch_table',
  'cluster_alloc',
  'cluster_alloc_bytes',
  'cluster_free',
  'flush_to_os',
  'flush_to_disk',
  'pwritev_rmw_head',
  'pwritev_rmw_after_head',
  'pwritev_rmw_tail',
  'pwritev_rmw_after_tail',
  'pwritev',
  'pwritev_zero',
  'pwritev_done',
  'empty_image_prepare',
  'l1_shrink_write_table',
  'l1_shrink_free_l2_clusters',
  'cor_write',
  'cluster_alloc_space',
  'none',
])

const state = z.int().optional().describe('Only in this state; the first is 1')

const injection = z.strictObject({
  event: event.describe('What must happen first; `none`: it holds from the start'),
  state,
  iotype: z
    .enum(['read', 'write', 'write-zeroes', 'discard', 'flush', 'block-status'])
    .optional()
    .describe('Which requests fail; by default all but block-status'),
  errno: z.int().default(constants.errno.EIO).describe('The number of the error, on Linux'),
  sector: z.int().optional().describe('Only requests that touch this sector, of 512 bytes'),
  once: z.boolean().default(false).describe('Only the first such request'),
  immediately: z.boolean().optional().describe('Accepted'),
})

const setState = z.strictObject({ event, state, new_state: z.int().describe('The state that follows') })

const permission = z.enum(['consistent-read', 'write', 'write-unchanged', 'resize'])

const size = (what: string) => z.int().min(0).optional().describe(what)

const options = z.strictObject({
  config: z.string().optional().describe('Refused: rules are said in the options'),
  align: size('Requests must be multiples of so many bytes, a power of 2'),
  'max-transfer': size('The most bytes of one read or write'),
  'opt-write-zero': size('Zeroing is by multiples of so many bytes'),
  'max-write-zero': size('The most bytes of one zeroing'),
  'opt-discard': size('Discards are multiples of so many bytes'),
  'max-discard': size('The most bytes of one discard'),
  'inject-error': z.array(injection).optional(),
  'set-state': z.array(setState).optional(),
  'take-child-perms': z.array(permission).optional().describe('Taken on the image besides those that are needed'),
  'unshare-child-perms': z.array(permission).optional().describe('Not shared with others on the image'),
})

export type BlkdebugOptions = z.infer<typeof options>

type Injection = z.infer<typeof injection>
type Kind = NonNullable<Injection['iotype']>

export const blkdebug: BlockDriver<BlkdebugOptions> = {
  name: 'blkdebug',
  options,
  children: {
    image: {
      role: 'filtered',
      permissions: ({ perm, shared }, _readOnly, own) => {
        const { 'take-child-perms': taken, 'unshare-child-perms': kept } = own as BlkdebugOptions
        return { perm: perm | bits(taken), shared: shared & ~bits(kept) }
      },
    },
  },
  reopens: true,
  async open(options, { children }) {
    if (options.config !== undefined)
      throw new NotSupported("blkdebug: 'config' files are not read here; say the rules in 'inject-error' and 'set-state'")
    const never = [...(options['inject-error'] ?? []), ...(options['set-state'] ?? [])].find(({ event }) => !FAMILIAR.has(event))
    if (never) throw new NotSupported(`blkdebug: nothing here tells of '${never.event}'; there are ${[...FAMILIAR].join(', ')}`)
    return new Blkdebug(children['image']!, options, limitsOf(options))
  },
}

const BITS: Record<z.infer<typeof permission>, number> = {
  'consistent-read': Permission.consistentRead,
  write: Permission.write,
  'write-unchanged': Permission.writeUnchanged,
  resize: Permission.resize,
}

const bits = (names: readonly (keyof typeof BITS)[] = []) => names.reduce((all, name) => all | BITS[name], 0)

type Limits = ReturnType<typeof limitsOf>

/** @throws InvalidParameter, in QEMU's words */
function limitsOf(options: BlkdebugOptions) {
  const checked = (
    name: 'align' | 'max-transfer' | 'opt-write-zero' | 'max-write-zero' | 'opt-discard' | 'max-discard',
    unit = 1,
  ) => {
    const { [name]: value = 0 } = options
    const isPower = name !== 'align' || value === 0 || Number.isInteger(Math.log2(value))
    if (value >= 2 ** 31 - 1 || value % unit !== 0 || !isPower)
      throw new InvalidParameter(`Cannot meet constraints with ${name} ${value}`)
    return value
  }
  const align = checked('align') || 1
  const transfer = checked('max-transfer', align)
  const zero = Math.max(align, checked('opt-write-zero', align))
  const maxZero = checked('max-write-zero', zero) || Infinity
  const discard = Math.max(align, checked('opt-discard', align))
  const maxDiscard = checked('max-discard', discard) || Infinity
  return { align, transfer, zero, maxZero, discard, maxDiscard }
}

class Blkdebug extends Passthrough {
  readonly alignment: number
  readonly maxTransfer?: number
  readonly #rules: Set<Injection>
  #state = 1
  #awake: readonly Injection[] = []

  constructor(
    below: BlockIo,
    private readonly options: BlkdebugOptions,
    private readonly limits: Limits,
  ) {
    super(below)
    this.#rules = new Set(options['inject-error'])
    this.alignment = limits.align
    if (limits.transfer > 0) this.maxTransfer = limits.transfer
    this.announce('none')
  }

  announce(event: Event) {
    const counts = (rule: { event: string; state?: number | undefined }) =>
      rule.event === event && (!rule.state || rule.state === this.#state)
    const woken = [...this.#rules].filter(counts)
    if (woken.length > 0) this.#awake = woken
    this.#state = this.options['set-state']?.find(counts)?.new_state ?? this.#state
  }

  override async read(offset: number, into: Buffer) {
    this.#maybeFail('read', { offset, length: into.length })
    await super.read(offset, into)
  }

  override async write(offset: number, data: Buffer, flags?: WriteFlags) {
    this.announce('pwritev')
    await this.#write(offset, data, flags)
    this.announce('pwritev_done')
  }

  override async zero(range: Range, flags: ZeroFlags = {}) {
    this.announce('pwritev_zero')
    const { zero: unit, maxZero } = this.limits
    const inner = wholeUnits(range, unit)
    const isCut = inner.offset > range.offset || endOf(inner) < endOf(range)
    if (isCut && flags.fast) throw new NotSupported(`zeroing what is no multiple of ${unit} bytes is as slow as writing it`)
    const fill = async (from: number, to: number) => {
      if (to > from) await this.#write(from, Buffer.alloc(to - from), { fua: flags.fua === true })
    }
    await fill(range.offset, inner.offset)
    for (const part of pieces(inner, maxZero)) {
      this.#maybeFail('write-zeroes', part)
      await super.zero(part, flags)
    }
    await fill(endOf(inner), endOf(range))
    this.announce('pwritev_done')
  }

  override async discard(range: Range) {
    const { discard: unit, maxDiscard } = this.limits
    for (const part of pieces(wholeUnits(range, unit), maxDiscard)) {
      this.#maybeFail('discard', part)
      await super.discard(part)
    }
  }

  override async flush() {
    this.announce('flush_to_os')
    this.announce('flush_to_disk')
    this.#maybeFail('flush', { offset: 0, length: 0 })
    await super.flush()
  }

  override async *extents(range: Range) {
    this.#maybeFail('block-status', range)
    yield* super.extents(range)
  }

  async #write(offset: number, data: Buffer, flags?: WriteFlags) {
    this.#maybeFail('write', { offset, length: data.length })
    await super.write(offset, data, flags)
  }

  #maybeFail(kind: Kind, range: Range) {
    const rule = this.#awake.find(rule => fits(rule, kind, range))
    if (!rule || rule.errno === 0) return
    if (rule.once) {
      this.#rules.delete(rule)
      this.#awake = this.#awake.filter(other => other !== rule)
    }
    throw systemFault(undefined, { code: codes.get(rule.errno) ?? 'EIO' })
  }
}

function fits({ iotype, sector }: Injection, kind: Kind, range: Range) {
  if (iotype === undefined ? kind === 'block-status' : iotype !== kind) return false
  if (sector === undefined || sector === -1) return true
  const offset = sector * SECTOR
  return offset >= range.offset && offset < endOf(range)
}

const codes = new Map(Object.entries(constants.errno).map(([code, number]) => [number, code]))

/** The whole units in a range, which may be none; what is left of it stands before and behind. */
function wholeUnits(range: Range, unit: number): Range {
  const offset = Math.min(alignUp(range.offset, unit), endOf(range))
  return { offset, length: Math.max(0, alignDown(endOf(range), unit) - offset) }
}
