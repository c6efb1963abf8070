// What differs by nature between qemu-storage-daemon and ours, taken out of answers and events before they are compared.

import type { Event } from './side.ts'

export interface NormalizeOptions {
  readonly folder: string
  /** Members, at any depth. */
  readonly ignoring: readonly string[]
}

/**
 * Never compared: how much room an image takes (each allocates in its own order) unless it keeps nothing, what QEMU 7.2 does not have yet (`active`, `actively-synced`), and what
 * our errors say beside QEMU's for programs (`data` of an error).
 */
const NEVER = new Set(['actual-size', 'active', 'actively-synced', 'timestamp'])

const keepsNothing = (value: object) => 'format' in value && value.format === 'null-co'

export function normalize(value: unknown, { folder, ignoring }: NormalizeOptions): unknown {
  const ignored = new Set([...NEVER, ...ignoring])
  const walk = (value: unknown): unknown => {
    if (typeof value === 'string') return text(value)
    if (Array.isArray(value)) return list(value.map(walk))
    if (typeof value !== 'object' || value === null) return value
    const members = Object.entries(value)
      .filter(([name, member]) => member !== undefined && (!ignored.has(name) || (name === 'actual-size' && keepsNothing(value))))
      .toSorted(([one], [other]) => (one < other ? -1 : 1))
      .map(([name, member]) => [name, walk(member)] as const)
      .filter(([name, member]) => !(name === 'dirty-bitmaps' && Array.isArray(member) && member.length === 0))
    // A file that is no multiple of a sector: QEMU counts whole ones.
    if ('virtual-size' in value && 'format' in value && value.format === 'file') {
      const size = members.find(([name]) => name === 'virtual-size')
      if (size) return Object.fromEntries([...members, ['virtual-size', Math.ceil(Number(size[1]) / 512) * 512]])
    }
    if ('class' in value && 'desc' in value) return Object.fromEntries(members.filter(([name]) => name !== 'data'))
    return Object.fromEntries(members)
  }
  const text = (value: string): unknown => {
    if (value.startsWith('json:')) return { json: walk(JSON.parse(value.slice(5))) }
    return value
      .replaceAll(folder, '$D')
      .replaceAll(/#block\d+/g, '#block')
      .replaceAll(/^.* ops; .*\/sec.*$\n?/gm, '') // qemu-io's measurements, '00.12 sec (' or '0:00:01.34 ('
  }
  return walk(value)
}

/** Nodes and bitmaps by name: QEMU and ours list them newest first, and clients must not rely on it. QEMU lists a job's own bitmaps too. */
function list(values: readonly unknown[]): unknown[] {
  const named = values.filter((value): value is Record<string, unknown> => typeof value === 'object' && value !== null)
  if (named.length < values.length) return [...values]
  const key = named.some(value => 'node-name' in value && 'drv' in value) ? 'node-name' : 'name'
  const isBitmap = named.some(value => 'granularity' in value && 'recording' in value)
  const kept = isBitmap ? named.filter(value => 'name' in value) : named
  if (!kept.every(value => typeof value[key] === 'string')) return [...kept]
  return kept.toSorted((one, other) => (String(one[key]) < String(other[key]) ? -1 : 1))
}

/** QEMU pauses jobs for a moment whenever it drains, at the start of each for one, and tells of it; ours do not stop for that. */
export function withoutDrains(events: readonly Event[]): Event[] {
  const last = new Map<unknown, Event>()
  const dropped = new Set<Event>()
  for (const event of events) {
    const before = last.get(subjectOf(event))
    last.set(subjectOf(event), event)
    if (!before) continue
    for (const [paused, going] of PAUSES) if (isStatus(event, going) && isStatus(before, paused)) dropped.add(before).add(event)
  }
  return events.filter(event => !dropped.has(event))
}

const PAUSES = [
  ['paused', 'running'],
  ['standby', 'ready'],
] as const

/** The job or export that it is about. */
export const subjectOf = ({ data }: Event) => data['id'] ?? data['device']

const isStatus = ({ event, data }: Event, status: string) => event === 'JOB_STATUS_CHANGE' && data['status'] === status

/** Whether all of `part` is in `whole`. */
export function matches(whole: unknown, part: unknown): boolean {
  if (typeof part !== 'object' || part === null) return whole === part
  return Object.entries(part).every(([name, value]) => matches((whole as Record<string, unknown> | undefined)?.[name], value))
}
